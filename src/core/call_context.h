// What the current thread is doing for Riffle.
#pragma once

#include <cstdint>

namespace riffle::core {

// A pool that this thread is inside: it holds a lease of the pool, or runs one of its tasks.
struct PoolFrame {
  const void* pool;
  const PoolFrame* outer;  // null: none; in a worker: the frames of the calling thread
};

// Trivially destructible, so that destructors of thread_local and static objects can use it.
struct CallContext {
  int entries = 0;                    // entry points that have not returned
  int64_t targets = 0;                // SIMD targets of the call (targets.h); 0: not chosen yet
  const PoolFrame* frames = nullptr;  // innermost first

  bool InsideOf(const void* pool) const {
    for (const PoolFrame* frame = frames; frame != nullptr; frame = frame->outer) {
      if (frame->pool == pool) {
        return true;
      }
    }
    return false;
  }
};

// constinit here too, so that the compiler emits no initialisation check at each use.
extern constinit thread_local CallContext call_context;

}  // namespace riffle::core
