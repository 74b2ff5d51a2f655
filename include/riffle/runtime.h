// Version, SIMD targets and threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "riffle/export.h"

namespace riffle {

RIFFLE_API std::string_view Version();

// SIMD targets this machine can run, best first, by Highway's names ("AVX3_ZEN4", "AVX2", ...).
RIFFLE_API std::vector<std::string> Targets();

// The target that kernels run on now.
RIFFLE_API std::string Target();

// Forces a target for all later calls in the process; "" returns to the best. The environment
// variable RIFFLE_TARGET does the same at the first call. Throws Error(kBadOption) for a name that
// is not in Targets(). Not to be called while a kernel runs.
RIFFLE_API void SetTarget(std::string_view name);

// A fixed set of threads. A call that finds its pool busy, from another thread or from inside a
// task, runs on the calling thread alone, so callers need no lock. Thread counts never change a bit
// of a result. Workers spin for some tens of microseconds after a call before they sleep: LLM steps
// come in bursts, and waking a sleeping thread costs as much as a small top-k.
class RIFFLE_API ThreadPool {
 public:
  // `threads` counts the caller too; 0 = the CPUs this process may use. Throws Error(kBadOption)
  // unless 0 <= threads <= 1024.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  class Impl;
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// task(i) for i in [0, tasks), each once, on any thread of `pool` (null: DefaultPool()); returns
// when all are done. For the loops between Riffle's calls, which so run on threads that are awake.
// `task` must not throw. Throws Error: kBadShape for tasks < 0, kBadOption for an empty task.
RIFFLE_API void ParallelFor(int64_t tasks, const std::function<void(int64_t)>& task,
                            ThreadPool* pool = nullptr);

// The pool that calls use when their options name none. Its size comes from RIFFLE_NUM_THREADS
// (1 to 1024), else from the CPUs this process may use.
RIFFLE_API ThreadPool& DefaultPool();
RIFFLE_API int NumThreads();

// Resizes the default pool. Throws Error(kBadOption) unless 1 <= threads <= 1024. Waits for a
// running call to end.
RIFFLE_API void SetNumThreads(int threads);

// Threads that another library keeps: calls body(data) on the calling thread and on up to
// `threads` - 1 more, once on each, and returns when all have returned. It is the signature of
// GOMP_parallel (flags = 0), by which GNU's and LLVM's OpenMP start a parallel region.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Makes the default pool run on such threads in place of its own, or with null on its own again.
// Where a program spends most of its time in the other library, whose idle threads spin on the
// CPUs, two pools wait for each other. Waits for a running call to end.
RIFFLE_API void SetParallelRegion(ParallelRegion region);

}  // namespace riffle
