// Version, SIMD targets, threads and scratch.
//
// Every task of every call, on whatever thread, runs under one floating-point environment: rounding
// to nearest (ties to even), subnormals kept, no traps. So results do not depend on the caller's
// settings, such as fesetround() or flushing subnormals to zero. On return the caller's environment
// is as before.
//
// A forked child may make any call. Its calls run on the calling thread alone until SetNumThreads
// gives it workers of its own; pools that the child makes have workers. Destructors of static and
// thread_local objects may make any call too.
//
// Memory that a call reads belongs to the caller, who must not write to it meanwhile. If it is
// written, results are unspecified, but no call reads or writes outside the memory it was given.
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

// The SIMD targets that this machine can run, best first, by Highway's names ("AVX3_ZEN4", "AVX2",
// ...).
RIFFLE_API std::vector<std::string> Targets();

// The target that kernels run on at present.
RIFFLE_API std::string Target();

// Sets the target of all later calls in the process; "" means the best one. The environment
// variable RIFFLE_TARGET does the same at the first call. A running call stays on the target it
// began with. Other users of Highway in the process keep theirs, as does another copy of Riffle.
// Throws Error(kBadOption) for a name that is not in Targets().
RIFFLE_API void SetTarget(std::string_view name);

// The current target and the slower ones of this machine, as bits of Highway (HWY_AVX2, ...), for
// kernels outside the library that follow SetTarget. In a task it is the target of the task's call.
RIFFLE_API int64_t TargetMask();

// Runs code on threads of another library: calls body(data) once on the calling thread and once on
// each of up to `threads` - 1 more, and returns when all have returned. The signature is that of
// GOMP_parallel (flags = 0), which starts a parallel region in the OpenMP of GNU and LLVM.
using ParallelRegion = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// A fixed set of threads. A call that finds its pool busy, with another thread's call or because it
// is made in a task, runs on the calling thread alone; so callers need no lock. Thread counts never
// change a bit of a result. After a call, workers spin for some tens of microseconds before they
// sleep: LLM steps come in bursts, and waking a sleeping thread takes as long as a small top-k. If
// the constructor throws, it leaves no thread behind.
class RIFFLE_API ThreadPool {
 public:
  // `threads` includes the caller; 0 means the CPUs that this process may use. Throws
  // Error(kBadOption) unless 0 <= threads <= 1024.
  explicit ThreadPool(int threads = 0);
  // A pool without threads of its own: a call that is given it runs on the threads of `region`. Use
  // it to run one call, or a part of a program, on another library's threads. A null region makes a
  // pool with its own threads. Throws as above.
  explicit ThreadPool(ParallelRegion region, int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  class Impl;
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Options of calls that have no options of their own.
struct CallOptions {
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// Calls task(i) for i in [0, tasks), each once, on any thread of the pool; returns when all are
// done. Use it for loops between Riffle calls: the workers are still spinning. `task` must not
// throw. Throws Error: kBadShape for tasks < 0, kBadOption for an empty task.
RIFFLE_API void ParallelFor(int64_t tasks, const std::function<void(int64_t)>& task,
                            const CallOptions& options = {});

// The pool of calls whose options name none. Its size is RIFFLE_NUM_THREADS (1 to 1024), or else
// the number of CPUs that this process may use. Its workers end with the library: at the end of the
// process, after the destructors of static objects, or when a plugin that contains Riffle is
// unloaded, which must not happen during a call. Later calls run on the calling thread alone.
RIFFLE_API ThreadPool& DefaultPool();
RIFFLE_API int NumThreads();

// Resizes the default pool. Waits for a running call to end. Throws Error: kBadOption unless 1 <=
// threads <= 1024, and in a task of that pool, which would wait for itself; kOutOfMemory if the
// system does not grant that many threads. On error the pool stays as it was.
RIFFLE_API void SetNumThreads(int threads);

// Makes the default pool run on a region's threads instead of its own; null returns to its own. In
// a program that spends most of its time in the other library, whose idle threads spin, two pools
// compete for the CPUs. Waits for a running call to end; throws as SetNumThreads does.
RIFFLE_API void SetParallelRegion(ParallelRegion region);

// Frees the scratch that the pool of the options and the calling thread keep from call to call.
// Each buffer is as large as its largest call needed, up to 128 MiB; larger ones are freed when
// their call ends. A call that finds no scratch allocates it, which about doubles its time if it
// needs tens of megabytes. Waits for a running call of the pool to end. Throws Error(kBadOption) in
// a task of the pool, which would wait for itself.
RIFFLE_API void ReleaseScratch(const CallOptions& options = {});

}  // namespace riffle
