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

// Lives as long as the call. The calling thread computes under the library's floating-point
// environment, the whole call on the SIMD target that it began with, and the thread's scratch is
// cut back at the end.
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
  int64_t targets_;  // of the call that this one is part of
};

// Throws the exception that is being handled; where it says that memory ran out, an
// Error(kOutOfMemory), which takes no memory. Called in a catch clause.
[[noreturn]] void RethrowAsError();

}  // namespace riffle::core
