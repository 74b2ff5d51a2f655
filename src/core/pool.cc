#include "core/pool.h"

#include <hwy/base.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "core/call_context.h"
#include "core/check.h"
#include "core/lease.h"

namespace riffle {

ThreadPool::Impl::Impl(int threads, ParallelRegion region)
    : workers_(std::make_unique<core::Workers>(threads, region)),
      owner_(core::ProcessId()),
      threads_(threads) {}

ThreadPool::Impl::~Impl() {
  if (core::ProcessId() != owner_.load(std::memory_order_relaxed)) {
    // A forked child leaks the workers: their threads do not exist here and cannot be joined.
    [[maybe_unused]] core::Workers* leaked = workers_.release();
  }
}

void ThreadPool::Impl::Release() {
  if (largest_ > core::kMaxKeptScratch) [[unlikely]] {
    workers_->ReleaseLargeScratch(core::kMaxKeptScratch);
    shared_.ReleaseIfLarger(core::kMaxKeptScratch);
    largest_ = 0;
  }
  busy_.store(false, std::memory_order_release);
}

uint8_t* ThreadPool::Impl::Shared(size_t bytes) {
  HWY_DASSERT(busy_.load(std::memory_order_relaxed));
  largest_ = std::max(largest_, bytes);
  return shared_.Get(bytes);
}

void ThreadPool::Impl::ReserveScratch(size_t bytes) {
  HWY_DASSERT(busy_.load(std::memory_order_relaxed));
  largest_ = std::max(largest_, bytes);
  workers_->ReserveScratch(bytes);
}

void ThreadPool::Impl::Run(int64_t tasks, core::FunctionRef<void(int64_t, uint8_t*)> task,
                           const core::PoolFrame* frames) {
  HWY_DASSERT(busy_.load(std::memory_order_relaxed));
  workers_->Run(tasks, task, frames);
}

void ThreadPool::Impl::Acquire(const char* function) {
  for (;; std::this_thread::yield()) {
    pid_t owner = owner_.load(std::memory_order_acquire);
    if (owner == core::ProcessId()) {
      core::Check(!core::call_context.InsideOf(this), Code::kBadOption, function,
                  " was called from a task of the pool, which would wait for itself to end");
      core::Check(
          !closed_.load(std::memory_order_relaxed), Code::kBadOption, function,
          " was called after the library had ended its threads, which it does at the end of the "
          "process and when it is unloaded");
      if (!busy_.exchange(true, std::memory_order_acquire)) {
        return;
      }
    } else if (owner != kNobody) {
      // This is a forked child. A call that held the pool when the parent forked never releases it
      // here, and neither the parent's workers nor its OpenMP threads exist here, so the child
      // starts with the calling thread alone.
      auto alone = std::make_unique<core::Workers>(1, nullptr);
      if (owner_.compare_exchange_strong(owner, kNobody)) {
        busy_.store(true, std::memory_order_relaxed);
        [[maybe_unused]] core::Workers* leaked = workers_.release();
        workers_ = std::move(alone);
        threads_.store(1, std::memory_order_relaxed);
        owner_.store(core::ProcessId(), std::memory_order_release);
        return;
      }
    }
  }
}

namespace {

// Releases what Acquire took.
struct Acquired {
  ThreadPool::Impl* impl;
  ~Acquired() { impl->Release(); }
};

}  // namespace

void ThreadPool::Impl::Resize(int threads) {
  Acquire("SetNumThreads");
  const Acquired acquired{this};
  // Makes the new workers first: if there is no memory for them, the old ones stay.
  workers_ = std::make_unique<core::Workers>(threads, workers_->region());
  threads_.store(threads, std::memory_order_relaxed);
}

void ThreadPool::Impl::Lend(ParallelRegion region) {
  Acquire("SetParallelRegion");
  const Acquired acquired{this};
  workers_ = std::make_unique<core::Workers>(threads(), region);
}

void ThreadPool::Impl::ReleaseScratch() {
  Acquire("ReleaseScratch");
  const Acquired acquired{this};
  workers_->ReleaseLargeScratch(0);
  shared_.Release();
}

void ThreadPool::Impl::Close() {
  if (core::ProcessId() != owner_.load(std::memory_order_relaxed) ||
      busy_.exchange(true, std::memory_order_acquire)) {
    return;  // the workers are in another process, or a call is still using them
  }
  closed_.store(true, std::memory_order_relaxed);
  threads_.store(1, std::memory_order_relaxed);
  workers_.reset();
  shared_.Release();
}

core::Lease::Lease(ThreadPool* pool) {
  ThreadPool::Impl& impl = (pool != nullptr ? *pool : DefaultPool()).impl();
  if (impl.TryAcquire()) {
    impl_ = &impl;
    threads_ = impl.threads();
    frame_ = {&impl, core::call_context.frames};
    core::call_context.frames = &frame_;
  }
}

core::Lease::~Lease() {
  if (impl_ != nullptr) {
    core::call_context.frames = frame_.outer;
    impl_->Release();
  }
}

uint8_t* core::Lease::Shared(size_t bytes) {
  return impl_ != nullptr ? impl_->Shared(bytes)
                          : core::ThreadScratch::Of(core::ThreadScratch::kShared).Get(bytes);
}

void core::Lease::ReserveScratch(size_t bytes) {
  if (impl_ != nullptr) {
    impl_->ReserveScratch(bytes);
  } else {
    scratch_ = core::ThreadScratch::Of(core::ThreadScratch::kTask).Get(bytes);
  }
}

void core::Lease::Run(int64_t tasks, core::FunctionRef<void(int64_t, uint8_t*)> task) {
  if (impl_ != nullptr) {
    impl_->Run(tasks, task, core::call_context.frames);
    return;
  }
  for (int64_t i = 0; i < tasks; ++i) {
    task(i, scratch_);
  }
}

}  // namespace riffle
