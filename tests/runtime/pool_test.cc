// The thread pool: it runs every task once, whoever calls. fork_test.cc has what a forked child may
// do.
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "core/lease.h"
#include "riffle/error.h"
#include "riffle/roofline.h"
#include "riffle/runtime.h"
#include "testing/parallel_region.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

int CpusOfThisProcess() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

TEST(ThreadPool, HasTheThreadsAskedFor) {
  for (const int threads : {1, 2, 7, 64}) {
    EXPECT_EQ(ThreadPool(threads).threads(), threads);
  }
  EXPECT_EQ(ThreadPool().threads(), CpusOfThisProcess());
}

TEST(ThreadPool, RefusesSizesOutOfRange) {
  for (const int threads : {-1, 1025}) {
    try {
      ThreadPool pool(threads);
      ADD_FAILURE() << "accepted " << threads;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kBadOption);
      EXPECT_NE(std::string(error.what()).find(std::to_string(threads)), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("1024"), std::string::npos);
    }
  }
  const int before = NumThreads();
  EXPECT_THROW(SetNumThreads(0), Error);
  EXPECT_THROW(SetNumThreads(-3), Error);
  EXPECT_THROW(SetNumThreads(1025), Error);
  EXPECT_EQ(NumThreads(), before);
}

TEST(ThreadPool, ParallelForRunsEachTaskOnce) {
  ThreadPool pool(3);
  for (const int64_t tasks : {0, 1, 2, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
    std::atomic<int> inner{0};
    ParallelFor(tasks,
                [&](int64_t i) {
                  runs[static_cast<size_t>(i)].fetch_add(1);
                  ParallelFor(2, [&](int64_t) { inner.fetch_add(1); },
                              {.pool = &pool});  // the pool is busy
                },
                {.pool = &pool});
    for (const std::atomic<int>& count : runs) {
      EXPECT_EQ(count.load(), 1);
    }
    EXPECT_EQ(inner.load(), 2 * tasks);
  }
}

TEST(ThreadPool, ParallelForRefusesWhatItCannotRun) {
  EXPECT_THROW(ParallelFor(-1, [](int64_t) {}), Error);
  EXPECT_THROW(ParallelFor(1, nullptr), Error);
}

TEST(ThreadPool, TheDefaultOneIsResized) {
  const int before = NumThreads();
  for (const int threads : {3, 1, 2}) {
    SetNumThreads(threads);
    EXPECT_EQ(NumThreads(), threads);
    EXPECT_EQ(DefaultPool().threads(), threads);
    EXPECT_EQ(core::Lease(nullptr).threads(), threads);
  }
  SetNumThreads(before);
}

// Changing a pool waits for its tasks, so one of its tasks would wait for itself. So would a task
// of another pool that works for one of its tasks.
TEST(ThreadPool, IsNotChangedFromItsTasks) {
  const int before = NumThreads();
  SetNumThreads(3);
  ThreadPool other(3);
  std::atomic<int> refused{0};
  const auto refuse = [&](const std::function<void()>& change) {
    try {
      change();
    } catch (const Error& error) {
      refused += error.code() == Code::kBadOption;
    }
  };
  const auto change = [&](int64_t) {
    refuse([] { SetNumThreads(1); });
    refuse([] { SetParallelRegion(nullptr); });
    refuse([] { ReleaseScratch(); });
  };
  ParallelFor(4, change);
  EXPECT_EQ(refused, 12);
  ParallelFor(2, [&](int64_t) { ParallelFor(4, change, {.pool = &other}); });
  EXPECT_EQ(refused, 36);
  // A task of an unrelated pool may do so.
  ParallelFor(4, [&](int64_t) { SetNumThreads(2); }, {.pool = &other});
  EXPECT_EQ(NumThreads(), 2);
  SetNumThreads(before);
}

TEST(Lease, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    core::Lease lease(&pool);
    for (const int64_t tasks : {0, 1, 2, 3, 100, 10000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      lease.Run(tasks, [&](int64_t task, uint8_t*) { ++runs[static_cast<size_t>(task)]; });
      for (int64_t task = 0; task < tasks; ++task) {
        ASSERT_EQ(runs[static_cast<size_t>(task)], 1) << task << " of " << tasks;
      }
    }
  }
}

// An OpenMP may give fewer than were asked for, or more than the pool has room for.
void NoOtherThread(void (*body)(void*), void* data, unsigned, unsigned) { body(data); }
void TooManyThreads(void (*body)(void*), void* data, unsigned threads, unsigned) {
  ThreadsOfTheTest(body, data, threads + 2, 0);
}

class TeamTest : public testing::TestWithParam<ParallelRegion> {
 protected:
  ~TeamTest() override {
    SetParallelRegion(nullptr);
    SetNumThreads(before_);
  }
  const int before_ = NumThreads();
};

TEST_P(TeamTest, RunsEveryTaskOnceWithScratchOfItsOwn) {
  SetNumThreads(3);
  SetParallelRegion(GetParam());
  EXPECT_EQ(NumThreads(), 3);
  for (const int64_t tasks : {0, 1, 2, 3, 1000}) {
    core::Lease lease(nullptr);
    EXPECT_EQ(lease.threads(), 3);
    lease.ReserveScratch(64);
    std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
    std::atomic<int> spoiled{0};
    lease.Run(tasks, [&](int64_t task, uint8_t* scratch) {
      std::fill(scratch, scratch + 64, static_cast<uint8_t>(task));
      runs[static_cast<size_t>(task)].fetch_add(1);
      spoiled += std::count(scratch, scratch + 64, static_cast<uint8_t>(task)) != 64;
    });
    for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
    EXPECT_EQ(spoiled.load(), 0);
  }
}

// For the calls that are given the pool, and no others.
TEST_P(TeamTest, OfOnePoolServesItsCalls) {
  static std::atomic<int> regions;
  static ParallelRegion inner;
  regions = 0;
  inner = GetParam();
  const ParallelRegion counted = [](void (*body)(void*), void* data, unsigned threads, unsigned) {
    regions.fetch_add(1);
    inner(body, data, threads, 0);
  };
  ThreadPool pool(counted, 3);
  EXPECT_EQ(pool.threads(), 3);
  for (int call = 1; call <= 3; ++call) {
    std::vector<std::atomic<int>> runs(1000);
    std::atomic<int> nested{0};
    ParallelFor(1000,
                [&](int64_t task) {
                  runs[static_cast<size_t>(task)].fetch_add(1);
                  if (task == 0) {  // the pool is busy: this runs on its own thread
                    ParallelFor(5, [&](int64_t) { nested.fetch_add(1); }, {&pool});
                  }
                },
                {&pool});
    for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
    EXPECT_EQ(nested.load(), 5);
    EXPECT_EQ(regions.load(), call);
    ParallelFor(1000, [](int64_t) {});  // the default pool's own threads
    EXPECT_EQ(regions.load(), call);
  }
  ReleaseScratch({&pool});
  const ThreadPool own(nullptr, 2);
  EXPECT_EQ(own.threads(), 2);
  EXPECT_THROW(ThreadPool(counted, -1), Error);
  EXPECT_THROW(ThreadPool(counted, 1025), Error);
}

TEST_P(TeamTest, StaysWhenThePoolIsResized) {
  static std::atomic<int> regions{0};
  SetParallelRegion([](void (*body)(void*), void* data, unsigned threads, unsigned) {
    regions.fetch_add(static_cast<int>(threads));
    body(data);
  });
  SetNumThreads(4);
  regions = 0;
  ParallelFor(100, [](int64_t) {});
  EXPECT_EQ(regions.load(), 4);
  SetParallelRegion(GetParam());
  ParallelFor(100, [](int64_t) {});
  SetParallelRegion(nullptr);
  ParallelFor(100, [](int64_t) {});
  EXPECT_EQ(regions.load(), 4);
}

INSTANTIATE_TEST_SUITE_P(ThreadPool, TeamTest,
                         testing::Values(&ThreadsOfTheTest, &NoOtherThread, &TooManyThreads));

// Many short jobs show a wake-up that is lost, or a worker that joins a job too late.
TEST(Lease, RunsManyShortJobs) {
  for (const int threads : {2, 4}) {
    ThreadPool pool(threads);
    std::atomic<int64_t> sum{0};
    for (int64_t job = 0; job < 5000; ++job) {
      core::Lease lease(&pool);
      lease.Run(3, [&](int64_t task, uint8_t*) { sum += task + job; });
      if (job % 1000 == 0) usleep(2000);  // long enough for the workers to fall asleep
    }
    EXPECT_EQ(sum, 5000 * 3 + int64_t{3} * 5000 * 4999 / 2);
  }
}

TEST(Lease, GivesEveryThreadItsOwnScratch) {
  ThreadPool pool(4);
  core::Lease lease(&pool);
  for (const size_t bytes : {size_t{64}, size_t{100000}, size_t{1}}) {
    lease.ReserveScratch(bytes);
    std::atomic<int> spoiled{0};
    lease.Run(64, [&](int64_t task, uint8_t* scratch) {
      const auto mark = static_cast<uint8_t>(task + 1);
      spoiled += reinterpret_cast<uintptr_t>(scratch) % 64 != 0;
      std::fill(scratch, scratch + bytes, mark);
      std::this_thread::yield();
      for (size_t i = 0; i < bytes; ++i) spoiled += scratch[i] != mark;
    });
    EXPECT_EQ(spoiled, 0);
  }
  uint8_t* shared = lease.Shared(1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(shared) % 64, 0u);
  std::fill(shared, shared + 1000, uint8_t{1});
}

TEST(Lease, OfABusyPoolRunsOnTheCaller) {
  ThreadPool pool(3);
  core::Lease outer(&pool);
  EXPECT_EQ(outer.threads(), 3);
  {
    core::Lease inner(&pool);
    EXPECT_EQ(inner.threads(), 1);
    inner.ReserveScratch(128);
    std::vector<std::thread::id> callers;
    inner.Run(10, [&](int64_t task, uint8_t* scratch) {
      scratch[127] = static_cast<uint8_t>(task);
      callers.push_back(std::this_thread::get_id());
    });
    EXPECT_EQ(callers, std::vector<std::thread::id>(10, std::this_thread::get_id()));
  }
  // From inside a task too, and the outer lease still works.
  std::atomic<int> runs{0};
  outer.Run(8, [&](int64_t, uint8_t*) {
    core::Lease inner(&pool);
    inner.Run(5, [&](int64_t, uint8_t*) { ++runs; });
  });
  EXPECT_EQ(runs, 40);
}

TEST(Lease, IsGivenBack) {
  ThreadPool pool(2);
  for (int i = 0; i < 3; ++i) {
    core::Lease lease(&pool);
    EXPECT_EQ(lease.threads(), 2) << i;
  }
}

TEST(ReadMax, ReadsEveryByte) {
  std::vector<uint8_t> bytes(5000, 3);
  for (const int threads : {1, 2, 3}) {
    for (const size_t offset : {0, 1, 77}) {
      for (const size_t size : {1, 2, 63, 64, 300, 4000}) {
        EXPECT_EQ(ReadMax(bytes.data() + offset, size, {.pool = &PoolOf(threads)}), 3);
        for (const size_t at : {size_t{0}, size / 2, size - 1}) {
          bytes[offset + at] = 200;
          EXPECT_EQ(ReadMax(bytes.data() + offset, size, {.pool = &PoolOf(threads)}), 200);
          bytes[offset + at] = 3;
        }
      }
    }
  }
  EXPECT_EQ(ReadMax(bytes.data(), 0), 0);
}

}  // namespace
}  // namespace riffle::test
