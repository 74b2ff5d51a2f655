// The entry points of the runtime.
#include "riffle/runtime.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/pool.h"
#include "core/printable.h"

namespace riffle {
namespace {

// Never destroyed: calls may come from destructors of static objects.
constinit std::atomic<ThreadPool*> default_pool{nullptr};
constinit std::atomic<bool> library_ends{false};

int DefaultThreads() {
  if (library_ends.load(std::memory_order_relaxed)) {
    return 1;
  }
  const char* text = std::getenv("RIFFLE_NUM_THREADS");
  if (text == nullptr || *text == '\0') {
    return std::min(core::AvailableCpus(), core::kMaxThreads);
  }
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  if (*end != '\0' || count < 1 || count > core::kMaxThreads) {
    core::Fail(Code::kBadOption, "RIFFLE_NUM_THREADS = ", core::Quote(text),
               " is not a number from 1 to ", core::kMaxThreads);
  }
  return static_cast<int>(count);
}

// If two threads come here at once, one of them discards its pool. A lock would be no better: it
// would stay locked in a child that is forked meanwhile.
ThreadPool& MakeDefaultPool() try {
  const core::EntryPoint entry;
  auto made = std::make_unique<ThreadPool>(DefaultThreads());
  ThreadPool* pool = nullptr;
  if (default_pool.compare_exchange_strong(pool, made.get(), std::memory_order_acq_rel)) {
    pool = made.release();
  }
  return *pool;
} catch (...) {
  core::RethrowAsError();
}

// Runs at the end of the process, after the destructors of static objects, or before a plugin that
// contains the library is unloaded.
[[gnu::destructor]] void EndThreads() {
  library_ends.store(true, std::memory_order_relaxed);
  if (const ThreadPool* pool = default_pool.load(std::memory_order_acquire)) {
    pool->impl().Close();
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads) : ThreadPool(nullptr, threads) {}

ThreadPool::ThreadPool(ParallelRegion region, int threads) try {
  const core::EntryPoint entry;
  core::Check(threads >= 0 && threads <= core::kMaxThreads, Code::kBadOption, "threads = ", threads,
              " is not in 0..", core::kMaxThreads);
  impl_ = std::make_unique<Impl>(
      threads == 0 ? std::min(core::AvailableCpus(), core::kMaxThreads) : threads, region);
} catch (...) {
  core::RethrowAsError();
}
ThreadPool::~ThreadPool() = default;
int ThreadPool::threads() const { return impl_->threads(); }

void ParallelFor(int64_t tasks, const std::function<void(int64_t)>& task,
                 const CallOptions& options) try {
  const core::EntryPoint entry;
  core::Check(tasks >= 0, Code::kBadShape, "tasks = ", tasks, " is negative");
  core::Check(task != nullptr, Code::kBadOption, "task is empty");
  core::Lease lease(options.pool);
  lease.Run(tasks, [&task](int64_t i, uint8_t*) { task(i); });
} catch (...) {
  core::RethrowAsError();
}

ThreadPool& DefaultPool() {
  ThreadPool* pool = default_pool.load(std::memory_order_acquire);
  return pool != nullptr ? *pool : MakeDefaultPool();
}

int NumThreads() { return DefaultPool().threads(); }

void SetNumThreads(int threads) try {
  const core::EntryPoint entry;
  core::Check(threads >= 1 && threads <= core::kMaxThreads, Code::kBadOption, "threads = ", threads,
              " is not in 1..", core::kMaxThreads);
  DefaultPool().impl().Resize(threads);
} catch (...) {
  core::RethrowAsError();
}

void SetParallelRegion(ParallelRegion region) try {
  const core::EntryPoint entry;
  DefaultPool().impl().Lend(region);
} catch (...) {
  core::RethrowAsError();
}

void ReleaseScratch(const CallOptions& options) try {
  const core::EntryPoint entry;
  (options.pool != nullptr ? *options.pool : DefaultPool()).impl().ReleaseScratch();
  if (core::call_context.entries == 1) {  // otherwise a call of this thread is using it
    core::ThreadScratch::Release();
  }
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
