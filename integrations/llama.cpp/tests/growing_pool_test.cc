#include "growing_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "riffle/error.h"
#include "riffle/runtime.h"

namespace riffle::llama {
namespace {

std::atomic<int> regions_chosen{0};
void CountRegion() { ++regions_chosen; }

void FailOnce() {
  if (++regions_chosen == 1) {
    SetNumThreads(0);  // throws
  }
}

TEST(GrowingPool, GrowsAndNeverShrinks) {
  regions_chosen = 0;
  GrowingPool pool(CountRegion);
  SetNumThreads(1);
  pool.Reserve(0);  // as a context that asks for no number does
  EXPECT_EQ(NumThreads(), 1);
  EXPECT_EQ(regions_chosen, 0);
  pool.Reserve(3);
  EXPECT_EQ(NumThreads(), 3);
  pool.Reserve(2);
  EXPECT_EQ(NumThreads(), 3);
  pool.Reserve(4);
  EXPECT_EQ(NumThreads(), 4);
  EXPECT_EQ(regions_chosen, 1);
}

TEST(GrowingPool, TriesAgainAfterAnError) {
  regions_chosen = 0;
  GrowingPool pool(FailOnce);
  SetNumThreads(1);
  EXPECT_THROW(pool.Reserve(2), Error);
  EXPECT_EQ(NumThreads(), 1);
  pool.Reserve(2);
  EXPECT_EQ(NumThreads(), 2);
  EXPECT_EQ(regions_chosen, 2);
}

// Whichever of two contexts grows the pool last, it has the threads of the larger one.
TEST(GrowingPool, ConcurrentCallsKeepTheLargestNumber) {
  constexpr int kRounds = 100;
  constexpr int kContexts = 4;
  for (int round = 0; round < kRounds; ++round) {
    regions_chosen = 0;
    GrowingPool pool(CountRegion);
    SetNumThreads(1);
    std::atomic<bool> start{false};
    std::vector<std::thread> contexts;
    for (int i = 0; i < kContexts; ++i) {
      contexts.emplace_back([&, threads = 2 + (i + round) % kContexts] {
        while (!start.load()) {
        }
        pool.Reserve(threads);
        EXPECT_GE(NumThreads(), threads);
      });
    }
    start = true;
    for (std::thread& context : contexts) {
      context.join();
    }
    EXPECT_EQ(NumThreads(), kContexts + 1);
    EXPECT_EQ(regions_chosen, 1);
  }
}

}  // namespace
}  // namespace riffle::llama
