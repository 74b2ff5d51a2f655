#include "growing_pool.h"

#include <algorithm>

#include "riffle/runtime.h"

namespace riffle::llama {

void GrowingPool::Grow(int threads) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (threads <= reserved_.load(std::memory_order_relaxed)) {
    return;  // another context has grown it meanwhile
  }
  if (!region_chosen_) {
    choose_region_();
    region_chosen_ = true;
  }
  SetNumThreads(std::min(threads, kMaxThreads));
  reserved_.store(threads, std::memory_order_release);
}

}  // namespace riffle::llama
