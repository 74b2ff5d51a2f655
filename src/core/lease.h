// Leases of a pool: how a call gets threads and scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "riffle/runtime.h"

namespace riffle::core {

// A reference to a callable; valid while the callable lives.
template <typename Signature>
class FunctionRef;
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(F&& f)  // NOLINT(google-explicit-constructor): a parameter type, like string_view
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
        }) {}
  R operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// Uninitialised memory, 64-byte aligned, that only grows.
class Arena {
 public:
  // At least `bytes` bytes. What an earlier call returned is lost when it has to grow. Throws
  // Error(kOutOfMemory).
  uint8_t* Get(size_t bytes);

 private:
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete (p, std::align_val_t{64}); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t capacity_ = 0;
};

// The threads of one call, from its first parallel loop to its last. Falls back to the calling
// thread alone when the pool is busy.
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
  // Error(kOutOfMemory). Both are called before any output is written.
  void ReserveScratch(size_t bytes);

  // task(i, scratch) for i in [0, tasks), each once, on any thread; returns when all are done.
  // `task` must not throw.
  void Run(int64_t tasks, FunctionRef<void(int64_t task, uint8_t* scratch)> task);

 private:
  ThreadPool::Impl* impl_ = nullptr;  // null: inline
  int threads_ = 1;
};

}  // namespace riffle::core
