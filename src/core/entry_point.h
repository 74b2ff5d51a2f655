// What all entry points of the library have in common. One looks like this:
//
//   void TopK(...) try {
//     const EntryPoint entry;
//     ...
//   } catch (...) {
//     RethrowAsError();
//   }
#pragma once

#include <cstdint>

#include "core/call_context.h"
#include "core/float_environment.h"
#include "core/scratch.h"

namespace riffle::core {

// Lives as long as the call. While it does, the calling thread runs under the library's
// floating-point environment and the whole call stays on the SIMD target that it began with. At the
// end, scratch of the thread that is too large to keep is freed.
class EntryPoint {
 public:
  EntryPoint() : targets_(call_context.targets) { ++call_context.entries; }
  ~EntryPoint() {
    call_context.targets = targets_;
    if (--call_context.entries == 0) {
      ThreadScratch::EndCall();
    }
  }
  EntryPoint(const EntryPoint&) = delete;
  EntryPoint& operator=(const EntryPoint&) = delete;

 private:
  FloatEnvironment environment_;
  int64_t targets_;  // of the enclosing call
};

// Rethrows the exception being handled; std::bad_alloc and std::length_error become an
// Error(kOutOfMemory), which is made without allocating. Call it in a catch clause.
[[noreturn]] void RethrowAsError();

}  // namespace riffle::core
