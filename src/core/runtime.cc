#include "riffle/runtime.h"

#include <hwy/cache_control.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/check.h"
#include "core/lease.h"

namespace riffle {
namespace {

constexpr int kMaxThreads = 1024;

// How long a worker spins for the next job before it sleeps. On a 2-core virtual machine a thread
// that slept took 0.07 ms (tenth percentile) to 1.9 ms (median) to wake; a top-k of 32 x 201088
// takes 0.1 ms.
constexpr auto kSpin = std::chrono::microseconds(100);

int AvailableCpus() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return CPU_COUNT(&set);
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

int DefaultThreads() {
  const char* text = std::getenv("RIFFLE_NUM_THREADS");
  if (text == nullptr || *text == '\0') {
    return std::min(AvailableCpus(), kMaxThreads);
  }
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  core::Check(*end == '\0' && count >= 1 && count <= kMaxThreads, Code::kBadOption,
              "RIFFLE_NUM_THREADS = '", text, "' is not a number from 1 to ", kMaxThreads);
  return static_cast<int>(count);
}

// getpid(), which is a system call (0.2 us on a virtual machine, half of a short top-k), kept up to
// date by a handler that runs in a forked child.
pid_t ProcessId() {
  static std::atomic<pid_t> id{0};
  static const bool kept = [] {
    id.store(getpid(), std::memory_order_relaxed);
    return pthread_atfork(nullptr, nullptr,
                          [] { id.store(getpid(), std::memory_order_relaxed); }) == 0;
  }();
  return kept ? id.load(std::memory_order_relaxed) : getpid();
}

// What a thread uses when it runs a call alone because the pool is busy.
struct InlineState {
  core::Arena shared;
  core::Arena scratch;
  uint8_t* scratch_data = nullptr;
};
thread_local InlineState inline_state;

template <typename Done>
void SpinThenWait(const std::atomic<uint32_t>& word, bool may_spin, const Done& done) {
  if (may_spin) {
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        if (done(word.load(std::memory_order_acquire))) {
          return;
        }
        hwy::Pause();
      }
    } while (std::chrono::steady_clock::now() < give_up);
  }
  uint32_t seen;
  while (!done(seen = word.load(std::memory_order_acquire))) {
    word.wait(seen, std::memory_order_acquire);
  }
}

}  // namespace

uint8_t* core::Arena::Get(size_t bytes) {
  if (bytes > capacity_) {
    data_.reset();
    capacity_ = 0;
    data_.reset(static_cast<uint8_t*>(::operator new (bytes, std::align_val_t{64}, std::nothrow)));
    core::Check(data_ != nullptr, Code::kOutOfMemory, "no memory for ", bytes, " bytes of scratch");
    capacity_ = bytes;
  }
  return data_.get();
}

// A job is open while `state_` has kOpen; a worker joins an open job by adding one, and leaves by
// subtracting it. The caller closes the job when no task is left and waits for those inside, never
// for a worker that is still waking up.
class RIFFLE_LOCAL ThreadPool::Impl {
 public:
  explicit Impl(int threads) { Start(threads); }
  ~Impl() {
    if (ProcessId() == owner_.load(std::memory_order_relaxed)) {
      Stop();
    } else {
      Leak();
    }
  }

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  // False when another call holds the pool, or in a forked child, which has no workers.
  bool TryAcquire() {
    return ProcessId() == owner_.load(std::memory_order_relaxed) &&
           !busy_.exchange(true, std::memory_order_acquire);
  }
  void Release() { busy_.store(false, std::memory_order_release); }

  void Resize(int threads) {
    Restart([&] { Start(threads, region_); });
  }

  void Lend(ParallelRegion region) {
    Restart([&] { Start(threads(), region); });
  }

  uint8_t* Shared(size_t bytes) { return shared_.Get(bytes); }

  void ReserveScratch(size_t bytes) {
    for (Slot& slot : slots_) {
      slot.data = slot.arena.Get(bytes);
    }
  }

  void Run(int64_t tasks, core::FunctionRef<void(int64_t, uint8_t*)> task) {
    if (tasks <= 1 || threads() == 1) {
      for (int64_t i = 0; i < tasks; ++i) {
        task(i, slots_[0].data);
      }
      return;
    }
    task_ = &task;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    if (region_ != nullptr) {
      RunOnRegion();
      return;
    }
    state_.store(kOpen, std::memory_order_release);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    Work(slots_[0]);
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    SpinThenWait(state_, may_spin_, [](uint32_t state) { return state == 0; });
  }

 private:
  static constexpr uint32_t kOpen = 1u << 31;
  static constexpr pid_t kNobody = 0;  // while a forked child makes the pool its own

  struct alignas(64) Slot {
    core::Arena arena;
    uint8_t* data = nullptr;
  };

  void Restart(core::FunctionRef<void()> start) {
    if (pid_t parent = owner_.load(std::memory_order_acquire);
        parent != ProcessId() && parent != kNobody &&
        owner_.compare_exchange_strong(parent, kNobody)) {
      // In a forked child. A call that held the pool at the fork will never give it back.
      busy_.store(true, std::memory_order_relaxed);
      region_ = nullptr;  // an OpenMP of the parent's has no threads here
      Leak();
    } else {
      while (owner_.load(std::memory_order_acquire) != ProcessId() ||
             busy_.exchange(true, std::memory_order_acquire)) {
        std::this_thread::yield();
      }
      Stop();
    }
    try {
      start();
    } catch (...) {
      Release();
      throw;
    }
    Release();
  }

  // Pre: no worker is left.
  void Start(int threads, ParallelRegion region = nullptr) {
    owner_.store(ProcessId(), std::memory_order_release);
    stop_.store(false, std::memory_order_relaxed);
    may_spin_ = threads <= AvailableCpus();
    slots_ = std::vector<Slot>(static_cast<size_t>(threads));
    region_ = region;
    const uint32_t epoch = epoch_.load(std::memory_order_relaxed);
    try {
      for (int i = 1; i < threads && region == nullptr; ++i) {
        workers_.emplace_back([this, i, epoch] { Loop(slots_[static_cast<size_t>(i)], epoch); });
      }
    } catch (const std::system_error& error) {
      const size_t started = workers_.size() + 1;
      Stop();
      threads_.store(1, std::memory_order_relaxed);
      core::Fail(Code::kOutOfMemory, "only ", started, " of ", threads, " threads: ", error.what());
    }
    threads_.store(threads, std::memory_order_relaxed);
  }

  // In a forked child the threads are not there to be joined.
  void Leak() {
    [[maybe_unused]] auto* leaked = new std::vector<std::thread>(std::move(workers_));
    workers_.clear();
  }

  void Stop() {
    stop_.store(true, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (std::thread& worker : workers_) {
      worker.join();
    }
    workers_.clear();
  }

  void Loop(Slot& slot, uint32_t epoch) {
    for (;;) {
      SpinThenWait(epoch_, may_spin_, [epoch](uint32_t now) { return now != epoch; });
      epoch = epoch_.load(std::memory_order_acquire);
      if (stop_.load(std::memory_order_relaxed)) {
        return;
      }
      uint32_t state = state_.load(std::memory_order_relaxed);
      while ((state & kOpen) != 0 &&
             !state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) {
      }
      if ((state & kOpen) == 0) {
        continue;
      }
      Work(slot);
      if (state_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        state_.notify_one();
      }
    }
  }

  // Each thread of the region takes the next slot, so that it does not matter which of them come.
  void RunOnRegion() {
    joined_.store(0, std::memory_order_relaxed);
    region_(
        [](void* pool) {
          auto* self = static_cast<Impl*>(pool);
          const size_t slot = self->joined_.fetch_add(1, std::memory_order_relaxed);
          if (slot < self->slots_.size()) {
            self->Work(self->slots_[slot]);
          }
        },
        this, static_cast<unsigned>(threads()), 0);
  }

  void Work(Slot& slot) {
    for (;;) {
      const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= tasks_) {
        return;
      }
      (*task_)(i, slot.data);
    }
  }

  std::vector<std::thread> workers_;
  std::vector<Slot> slots_;  // [threads]; 0 is the caller's
  core::Arena shared_;
  std::atomic<pid_t> owner_{kNobody};
  bool may_spin_ = false;
  ParallelRegion region_ = nullptr;  // null: workers_
  std::atomic<int> threads_{1};
  std::atomic<bool> stop_{false};
  std::atomic<bool> busy_{false};
  std::atomic<size_t> joined_{0};

  const core::FunctionRef<void(int64_t, uint8_t*)>* task_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> state_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
};

ThreadPool::ThreadPool(int threads) {
  core::Check(threads >= 0 && threads <= kMaxThreads, Code::kBadOption, "threads = ", threads,
              " is not in 0..", kMaxThreads);
  impl_ = std::make_unique<Impl>(threads == 0 ? std::min(AvailableCpus(), kMaxThreads) : threads);
}
ThreadPool::~ThreadPool() = default;
int ThreadPool::threads() const { return impl_->threads(); }

void ParallelFor(int64_t tasks, const std::function<void(int64_t)>& task, ThreadPool* pool) {
  core::Check(tasks >= 0, Code::kBadShape, "tasks = ", tasks, " is negative");
  core::Check(task != nullptr, Code::kBadOption, "task is empty");
  core::Lease lease(pool);
  lease.Run(tasks, [&task](int64_t i, uint8_t*) { task(i); });
}

ThreadPool& DefaultPool() {
  // Never destroyed: calls may come from other static destructors.
  static ThreadPool* pool = new ThreadPool(DefaultThreads());
  return *pool;
}

int NumThreads() { return DefaultPool().threads(); }

void SetNumThreads(int threads) {
  core::Check(threads >= 1 && threads <= kMaxThreads, Code::kBadOption, "threads = ", threads,
              " is not in 1..", kMaxThreads);
  DefaultPool().impl().Resize(threads);
}

void SetParallelRegion(ParallelRegion region) { DefaultPool().impl().Lend(region); }

core::Lease::Lease(ThreadPool* pool) {
  ThreadPool::Impl& impl = (pool != nullptr ? *pool : DefaultPool()).impl();
  if (impl.TryAcquire()) {
    impl_ = &impl;
    threads_ = impl.threads();
  }
}

core::Lease::~Lease() {
  if (impl_ != nullptr) {
    impl_->Release();
  }
}

uint8_t* core::Lease::Shared(size_t bytes) {
  return impl_ != nullptr ? impl_->Shared(bytes) : inline_state.shared.Get(bytes);
}

void core::Lease::ReserveScratch(size_t bytes) {
  if (impl_ != nullptr) {
    impl_->ReserveScratch(bytes);
  } else {
    inline_state.scratch_data = inline_state.scratch.Get(bytes);
  }
}

void core::Lease::Run(int64_t tasks, core::FunctionRef<void(int64_t, uint8_t*)> task) {
  if (impl_ != nullptr) {
    impl_->Run(tasks, task);
    return;
  }
  for (int64_t i = 0; i < tasks; ++i) {
    task(i, inline_state.scratch_data);
  }
}

}  // namespace riffle
