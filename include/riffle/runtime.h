// Version, SIMD targets, threads, scratch, and the roofline every timing is held against.
//
// Every task of every call, on whatever thread, runs under one floating-point environment: rounding
// to nearest (ties to even), subnormals kept, no traps. So results do not depend on what the caller
// has set, as by fesetround() or to flush subnormals to zero; on return the caller's is as it was.
//
// A forked child may make any call. Its calls run on the calling thread alone, until SetNumThreads
// gives it workers of its own; pools that it makes itself have theirs. So may destructors of static
// and thread_local objects.
//
// Memory that calls read belongs to the caller and must not be written meanwhile: results are
// unspecified if it is, but no call reads or writes outside of what it was given.
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
// variable RIFFLE_TARGET does the same at the first call. Calls that run go on with the target they
// began with. Other users of Highway in the process, another copy of Riffle among them, keep
// theirs. Throws Error(kBadOption) for a name that is not in Targets().
RIFFLE_API void SetTarget(std::string_view name);

// The target that kernels run on now and the slower ones of this machine, as bits of Highway's
// (HWY_AVX2, ...), for kernels outside of the library that follow SetTarget. In a task: of the call
// that the task belongs to.
RIFFLE_API int64_t TargetMask();

// A fixed set of threads. A call that finds its pool busy, from another thread or from inside a
// task, runs on the calling thread alone, so callers need no lock. Thread counts never change a bit
// of a result. Workers spin for some tens of microseconds after a call before they sleep: LLM steps
// come in bursts, and waking a sleeping thread costs as much as a small top-k. When the constructor
// throws, no thread is left behind.
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

// The options of calls that have no others.
struct CallOptions {
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// task(i) for i in [0, tasks), each once, on any thread of the pool; returns when all are done. Use
// it for loops between Riffle's calls: the workers are still spinning. `task` must not throw.
// Throws Error: kBadShape for tasks < 0, kBadOption for an empty task.
RIFFLE_API void ParallelFor(int64_t tasks, const std::function<void(int64_t)>& task,
                            const CallOptions& options = {});

// The pool that calls use when their options name none. Its size comes from RIFFLE_NUM_THREADS
// (1 to 1024), else from the CPUs this process may use. Its workers end with the library: at the
// end of the process, after the destructors of static objects, or when a plugin that contains
// Riffle is unloaded, which may not happen during a call. Calls after that run on the calling
// thread alone.
RIFFLE_API ThreadPool& DefaultPool();
RIFFLE_API int NumThreads();

// Resizes the default pool. Waits for a running call to end. Throws Error: kBadOption unless
// 1 <= threads <= 1024, or in a task of that pool, which would wait for itself; kOutOfMemory when
// so many threads cannot be had. Then the pool is as it was.
RIFFLE_API void SetNumThreads(int threads);

// Threads that another library keeps: calls body(data) on the calling thread and on up to
// `threads` - 1 more, once on each, and returns when all have returned. It is the signature of
// GOMP_parallel (flags = 0), by which GNU's and LLVM's OpenMP start a parallel region.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Makes the default pool run on such threads in place of its own, or with null on its own again.
// Where a program spends most of its time in the other library, whose idle threads spin on the
// CPUs, two pools wait for each other. Waits for a running call to end, and throws as SetNumThreads
// does.
RIFFLE_API void SetParallelRegion(ParallelRegion region);

// Frees the scratch that the pool of the options and the calling thread keep from call to
// call. Each of their buffers is as large as its largest call needed, up to 128 MiB: larger ones
// are given back when their call ends. A call that finds no scratch makes its own, which takes
// time: about twice that of the call where it is tens of megabytes. Waits for a running call of the
// pool to end. Throws Error(kBadOption) in a task of the pool, which would wait for itself.
RIFFLE_API void ReleaseScratch(const CallOptions& options = {});

}  // namespace riffle
