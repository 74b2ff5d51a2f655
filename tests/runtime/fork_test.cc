// What a forked child may do: call the library, make pools and destroy the parent's, whatever the
// parent's threads were doing at the fork.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/fork.h"
#include "core/lease.h"
#include "riffle/runtime.h"
#include "testing/parallel_region.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

// Runs `body` in a forked child. Returns 0 if it returned true in time.
int InChild(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // ends a child that waits for threads which it does not have
    bool right = false;
    try {
      right = body();
    } catch (...) {
    }
    _exit(right ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

struct Example {
  Input input{{Distribution::kNormal, DType::kF32, 3, 30000, 30000, 20, 0, true, 1}};
  Truth truth{input.view(), 20};

  bool Right(ThreadPool* pool) const {
    std::vector<float> values(60);
    std::vector<int32_t> indices(60);
    TopKOptions options;
    options.pool = pool;
    TopK(input.view(), 20, {values.data(), 20, indices.data(), 20}, options);
    for (size_t row = 0; row < 3; ++row) {
      if (!std::equal(truth.columns[row].begin(), truth.columns[row].end(),
                      indices.begin() + static_cast<int64_t>(row) * 20)) {
        return false;
      }
    }
    return true;
  }
};

// multiprocessing in Python forks after the parent has used its pool.
TEST(Fork, ChildrenCanCall) {
  const Example example;
  ThreadPool pool(3);
  ASSERT_TRUE(example.Right(&pool));
  ASSERT_TRUE(example.Right(nullptr));
  EXPECT_EQ(InChild([&] { return example.Right(&pool) && example.Right(nullptr); }), 0);
  EXPECT_TRUE(example.Right(&pool));
}

TEST(Fork, ChildrenCanMakePools) {
  if (kThreadSanitizer) GTEST_SKIP() << "ThreadSanitizer allows no threads after such a fork";
  const Example example;
  ASSERT_TRUE(example.Right(nullptr));
  EXPECT_EQ(InChild([&] {
              ThreadPool pool(2);
              return pool.threads() == 2 && example.Right(&pool);
            }),
            0);
  EXPECT_EQ(InChild([&] {
              SetNumThreads(3);
              return NumThreads() == 3 && core::Lease(nullptr).threads() == 3 &&
                     example.Right(nullptr);
            }),
            0);
}

// The child lacks the threads of a parallel region too, and runs alone. A pool that it resizes has
// threads of its own.
TEST(Fork, ChildrenLeaveTheTeam) {
  const Example example;
  const int before = NumThreads();
  SetNumThreads(2);
  SetParallelRegion([](void (*body)(void*), void* data, unsigned threads, unsigned) {
    static const pid_t parent = getpid();
    if (getpid() != parent) _exit(9);
    ThreadsOfTheTest(body, data, threads, 0);
  });
  ASSERT_TRUE(example.Right(nullptr));
  EXPECT_EQ(InChild([&] { return example.Right(nullptr); }), 0);
  if (!kThreadSanitizer) {
    EXPECT_EQ(InChild([&] {
                SetNumThreads(3);
                return core::Lease(nullptr).threads() == 3 && example.Right(nullptr);
              }),
              0);
  }
  EXPECT_TRUE(example.Right(nullptr));
  SetParallelRegion(nullptr);
  SetNumThreads(before);
}

// Destroying a pool that the parent made must not wait for the parent's threads.
TEST(Fork, ChildrenCanDestroyPools) {
  auto pool = std::make_unique<ThreadPool>(3);
  const Example example;
  ASSERT_TRUE(example.Right(pool.get()));
  EXPECT_EQ(InChild([&] {
              pool.reset();
              return true;
            }),
            0);
  EXPECT_TRUE(example.Right(pool.get()));
}

// A fork while other threads are in calls, whatever locks they hold.
TEST(Fork, DuringCalls) {
  const Example example;
  const std::string target = Targets().back();
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int i = 0; i < 2; ++i) {
    callers.emplace_back([&, i] {
      while (!stop) {
        example.Right(nullptr);
        SetTarget(i == 0 ? target : "");
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(InChild([&] {
                SetTarget(target);
                return Target() == target && example.Right(nullptr);
              }),
              0);
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
  SetTarget("");
}

// In the child, data that a lock guards are consistent, because fork() waits for the lock's owner.
TEST(Fork, WhileALockIsHeld) {
  auto lock = std::make_unique<core::ForkSafeMutex>();
  const auto other = std::make_unique<core::ForkSafeMutex>();
  std::atomic<bool> stop{false};
  int first = 0;
  int second = 0;
  std::thread changing([&] {
    while (!stop) {
      const std::lock_guard<core::ForkSafeMutex> held(*lock);
      ++first;
      usleep(100);
      ++second;
    }
  });
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(InChild([&] {
                const std::lock_guard<core::ForkSafeMutex> held(*lock);
                const std::lock_guard<core::ForkSafeMutex> too(*other);
                return first == second;
              }),
              0);
  }
  stop = true;
  changing.join();
  lock.reset();
  EXPECT_EQ(InChild([&] { return other->try_lock(); }), 0);
}

// Another thread of the parent may hold the pool at the fork; in the child nobody will ever give it
// back.
TEST(Fork, WhileThePoolIsBusy) {
  const Example example;
  ASSERT_TRUE(example.Right(nullptr));
  const core::Lease held(nullptr);
  EXPECT_EQ(InChild([&] { return example.Right(nullptr); }), 0);
  if (!kThreadSanitizer) {
    EXPECT_EQ(InChild([&] {
                SetNumThreads(2);
                return NumThreads() == 2 && example.Right(nullptr);
              }),
              0);
  }
}

}  // namespace
}  // namespace riffle::test
