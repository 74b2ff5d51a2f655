// Leases of a pool: how a call gets threads and scratch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/call_context.h"
#include "core/function_ref.h"
#include "core/scratch.h"
#include "riffle/runtime.h"

namespace riffle::core {

// The threads of one call, from its first parallel loop to its last. Falls back to the calling
// thread alone when the pool is busy. Pre: the thread has an EntryPoint that outlives the lease;
// leases of a thread are nested, the last to begin ends first.
class Lease {
 public:
  explicit Lease(ThreadPool* pool);  // null: DefaultPool()
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  int threads() const { return threads_; }

  // Memory that all tasks see; lives as long as the lease. Throws Error(kOutOfMemory).
  uint8_t* Shared(size_t bytes);

  // Gives every thread `bytes` of its own for the Run calls that follow. Throws
  // Error(kOutOfMemory), so call this and Shared before any output is written.
  void ReserveScratch(size_t bytes);

  // task(i, scratch) for i in [0, tasks), each once, on any thread; returns when all are done.
  // `task` must not throw.
  void Run(int64_t tasks, FunctionRef<void(int64_t task, uint8_t* scratch)> task);

 private:
  ThreadPool::Impl* impl_ = nullptr;  // null: inline
  int threads_ = 1;
  uint8_t* scratch_ = nullptr;  // inline
  PoolFrame frame_ = {};
};

}  // namespace riffle::core
