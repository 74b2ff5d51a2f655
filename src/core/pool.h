// Which call may use a pool's workers: one at a time, in the process that started them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/fork.h"
#include "core/workers.h"
#include "riffle/runtime.h"

namespace riffle {
namespace core {

inline constexpr int kMaxThreads = 1024;

}  // namespace core

class RIFFLE_LOCAL ThreadPool::Impl {
 public:
  Impl(int threads, ParallelRegion region);
  ~Impl();

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  // False when another call holds the pool, after Close(), and in a forked child, which has no
  // workers.
  bool TryAcquire() {
    return core::ProcessId() == owner_.load(std::memory_order_relaxed) &&
           !busy_.exchange(true, std::memory_order_acquire);
  }
  void Release();

  // These three wait for a running call to end. On a thread that is part of that call they would
  // wait for themselves, so there they throw Error(kBadOption).
  void Resize(int threads);
  void Lend(ParallelRegion region);
  void ReleaseScratch();

  // Ends the workers unless a call is running; all later calls run on their own threads.
  void Close();

  // These three are for the call that has acquired the pool.
  uint8_t* Shared(size_t bytes);
  void ReserveScratch(size_t bytes);
  void Run(int64_t tasks, core::FunctionRef<void(int64_t, uint8_t*)> task,
           const core::PoolFrame* frames);

 private:
  static constexpr pid_t kNobody = 0;  // while a forked child takes the pool over

  void Acquire(const char* function);

  std::unique_ptr<core::Workers> workers_;
  core::Arena shared_;
  size_t largest_ = 0;  // bytes of the largest arena: `shared_` or a worker's
  std::atomic<pid_t> owner_;
  std::atomic<int> threads_;
  std::atomic<bool> busy_{false};
  std::atomic<bool> closed_{false};
};

}  // namespace riffle
