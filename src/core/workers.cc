#include "core/workers.h"

#include <hwy/cache_control.h>

#include <chrono>
#include <system_error>

#include "core/check.h"
#include "core/float_environment.h"

namespace riffle::core {
namespace {

// How long a worker spins for the next job before it sleeps. On a 2-core virtual machine a thread
// that slept took 0.07 ms (tenth percentile) to 1.9 ms (median) to wake; a top-k of 32 x 201088
// takes 0.1 ms.
constexpr auto kSpin = std::chrono::microseconds(100);

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

Workers::Workers(int count, ParallelRegion lent)
    : region_(lent), may_spin_(count <= AvailableCpus()), scratch_(static_cast<size_t>(count)) {
  if (lent != nullptr) {
    return;
  }
  threads_.reserve(scratch_.size());
  try {
    for (size_t i = 1; i < scratch_.size(); ++i) {
      threads_.emplace_back([this, i] { Loop(scratch_[i], 0); });
    }
  } catch (const std::system_error& error) {
    const size_t started = threads_.size() + 1;
    Stop();
    Fail(Code::kOutOfMemory, "only ", started, " of ", count, " threads: ", error.what());
  } catch (...) {
    Stop();
    throw;
  }
}

Workers::~Workers() { Stop(); }

void Workers::Stop() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
}

void Workers::ReserveScratch(size_t bytes) {
  for (WorkerScratch& scratch : scratch_) {
    scratch.data = scratch.arena.Get(bytes);
  }
}

void Workers::ReleaseLargeScratch(size_t max_bytes) {
  for (WorkerScratch& scratch : scratch_) {
    scratch.arena.ReleaseIfLarger(max_bytes);
    scratch.data = scratch.arena.data();
  }
}

void Workers::Run(int64_t tasks, FunctionRef<void(int64_t, uint8_t*)> task,
                  const PoolFrame* frames) {
  if (tasks <= 1 || scratch_.size() == 1) {
    for (int64_t i = 0; i < tasks; ++i) {
      task(i, scratch_[0].data);
    }
    return;
  }
  task_ = &task;
  tasks_ = tasks;
  frames_ = frames;
  targets_ = call_context.targets;
  next_.store(0, std::memory_order_relaxed);
  if (region_ != nullptr) {
    RunOnRegion();
    return;
  }
  state_.store(kOpen, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  Work(scratch_[0]);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  SpinThenWait(state_, may_spin_, [](uint32_t state) { return state == 0; });
}

void Workers::Loop(WorkerScratch& scratch, uint32_t epoch) {
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
    WorkForCaller(scratch);
    if (state_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      state_.notify_one();
    }
  }
}

// The threads of the region are numbered as they arrive, and each uses the scratch of its number.
// Fewer threads than asked for are enough; threads beyond that number do nothing.
void Workers::RunOnRegion() {
  joined_.store(0, std::memory_order_relaxed);
  region_(
      [](void* workers) {
        auto* self = static_cast<Workers*>(workers);
        const size_t thread = self->joined_.fetch_add(1, std::memory_order_relaxed);
        if (thread < self->scratch_.size()) {
          self->WorkForCaller(self->scratch_[thread]);
        }
      },
      this, static_cast<unsigned>(threads()), 0);
}

// Runs tasks on any thread as the calling thread would: in the library's floating-point
// environment, on the call's SIMD target, and inside the pools that the caller is inside.
void Workers::WorkForCaller(WorkerScratch& scratch) {
  const FloatEnvironment environment;
  const CallContext own = call_context;
  call_context.targets = targets_;
  call_context.frames = frames_;
  Work(scratch);
  call_context.targets = own.targets;
  call_context.frames = own.frames;
}

void Workers::Work(WorkerScratch& scratch) {
  for (;;) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= tasks_) {
      return;
    }
    (*task_)(i, scratch.data);
  }
}

}  // namespace riffle::core
