// The threads of a pool and how they share the tasks of a job.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "core/call_context.h"
#include "core/function_ref.h"
#include "core/scratch.h"
#include "riffle/runtime.h"

namespace riffle::core {

// A job is open while `state_` has the bit kOpen. A worker joins an open job by adding one to
// `state_` and leaves it by subtracting one. When no task is left the caller closes the job and
// waits for the workers inside, never for one that is still waking up.
class Workers {
 public:
  // `count` threads, the caller's included, or a parallel region that is lent. Throws
  // Error(kOutOfMemory) or std::bad_alloc; then no thread is left running.
  Workers(int count, ParallelRegion lent);
  ~Workers();  // waits until the threads have ended
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return static_cast<int>(scratch_.size()); }
  ParallelRegion region() const { return region_; }

  // Gives every thread `bytes` of its own.
  void ReserveScratch(size_t bytes);
  // Frees the scratch of each thread that has more than `max_bytes` bytes; tasks get none until the
  // next ReserveScratch.
  void ReleaseLargeScratch(size_t max_bytes);

  // Runs task(i, scratch) for i in [0, tasks), each with its thread's scratch. `frames`: see
  // PoolFrame.
  void Run(int64_t tasks, FunctionRef<void(int64_t, uint8_t*)> task, const PoolFrame* frames);

 private:
  static constexpr uint32_t kOpen = 1u << 31;

  struct alignas(64) WorkerScratch {
    Arena arena;
    uint8_t* data = nullptr;
  };

  void Stop();
  void Loop(WorkerScratch& scratch, uint32_t epoch);
  void RunOnRegion();
  void WorkForCaller(WorkerScratch& scratch);
  void Work(WorkerScratch& scratch);

  const ParallelRegion region_;  // null: threads_
  const bool may_spin_;
  std::vector<WorkerScratch> scratch_;  // 0 is the caller's
  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  std::atomic<size_t> joined_{0};

  const FunctionRef<void(int64_t, uint8_t*)>* task_ = nullptr;
  const PoolFrame* frames_ = nullptr;
  int64_t targets_ = 0;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> state_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
};

int AvailableCpus();

}  // namespace riffle::core
