// What the calling thread does for Riffle at the moment.
#pragma once

#include <cstdint>

namespace riffle::core {

// A pool that this thread is inside of: it holds a lease of the pool, or runs one of its tasks.
struct PoolFrame {
  const void* pool;
  const PoolFrame* outer;  // null: none; of a worker: the frames of the thread it works for
};

// Trivially destructible, so it can be used from destructors of thread_local and static objects.
struct CallContext {
  int entries = 0;                    // entry points that have not returned
  int64_t targets = 0;                // SIMD targets of the call (targets.h); 0: not asked for yet
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

// constinit here too, so that no use goes through a function that might have to initialise it.
extern constinit thread_local CallContext call_context;

}  // namespace riffle::core
