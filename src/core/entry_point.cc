#include "core/entry_point.h"

#include <hwy/base.h>

#include <exception>
#include <new>
#include <stdexcept>

#include "riffle/error.h"

namespace riffle {
namespace {

// Made when the library is loaded, while there is memory; copying it allocates nothing. Never
// destroyed, because memory may run out in destructors of static objects too.
const Error& NoMemory() {
  alignas(Error) static unsigned char memory[sizeof(Error)];
  static const Error* const error =
      new (memory) Error(Code::kOutOfMemory, "no memory for the bookkeeping of a call");
  return *error;
}

[[maybe_unused]] const Error& made_at_load = NoMemory();

}  // namespace

constinit thread_local core::CallContext core::call_context;

void core::RethrowAsError() {
  HWY_DASSERT(std::current_exception() != nullptr);
  try {
    throw;
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  throw Error(NoMemory());
}

}  // namespace riffle
