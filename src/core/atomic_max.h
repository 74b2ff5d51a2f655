#pragma once

#include <atomic>

namespace riffle::core {

// Sets `max` to the larger of itself and `value`. Relaxed: it orders no other memory.
template <typename T>
void AtomicMax(std::atomic<T>& max, T value) {
  T old = max.load(std::memory_order_relaxed);
  while (value > old && !max.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
}

}  // namespace riffle::core
