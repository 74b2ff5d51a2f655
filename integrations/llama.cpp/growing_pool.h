// Gives Riffle's default pool as many threads as the largest context of llama.cpp asks for.
#pragma once

#include <atomic>
#include <mutex>

namespace riffle::llama {

// Contexts ask for different numbers of threads, and may do so at the same time. The default pool
// grows to the largest number and never shrinks: contexts with fewer threads take part with those
// they have.
class GrowingPool {
 public:
  // `choose_region` is called once, before the pool grows for the first time. It may call
  // SetParallelRegion.
  constexpr explicit GrowingPool(void (*choose_region)()) : choose_region_(choose_region) {}
  GrowingPool(const GrowingPool&) = delete;
  GrowingPool& operator=(const GrowingPool&) = delete;

  // Returns when the pool has `threads` threads or more, at most kMaxThreads. One atomic load if it
  // has them already. Throws what SetParallelRegion and SetNumThreads throw; the next call then
  // tries again.
  void Reserve(int threads) {
    if (threads > reserved_.load(std::memory_order_acquire)) {
      Grow(threads);
    }
  }

  static constexpr int kMaxThreads = 1024;  // the most that SetNumThreads takes

 private:
  void Grow(int threads);

  void (*const choose_region_)();
  std::atomic<int> reserved_{0};  // the largest number that the pool has been grown for
  std::mutex mutex_;              // held while the pool grows
  bool region_chosen_ = false;    // guarded by mutex_
};

}  // namespace riffle::llama
