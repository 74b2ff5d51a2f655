// Thread counts never change a bit of an answer, and callers need no lock.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "riffle/topk.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

const std::vector<DType> kDTypes = AllDTypes();

// One long row, or a few, are split over the threads; many rows are handed out whole.
TEST(TopKThreads, AnyNumberGivesTheSameBits) {
  for (const DType dtype : kDTypes) {
    for (const Distribution distribution :
         {Distribution::kNormal, Distribution::kLogProbs, Distribution::kTies,
          Distribution::kFewNaN, Distribution::kAllEqual, Distribution::kHotBucket,
          Distribution::kFewPositive, Distribution::kSignedZeros, Distribution::kRandomBits}) {
      for (const int64_t rows : {1, 2, 3, 5, 17}) {
        const int64_t n = rows < 4 ? 70001 : 9001;
        const Input input(
            {distribution, dtype, rows, n, n + 1, 64, 2, true, static_cast<uint64_t>(rows)});
        const Truth truth(input.view(), 64);
        for (const bool sorted : {true, false}) {
          Call call;
          call.k = {rows % 2 == 0 ? 64 : 7};
          call.sorted = sorted;
          call.stats = sorted;
          const Outcome alone = CheckTopK(input, truth, call);
          for (const int threads : {2, 3, 5}) {
            call.threads = threads;
            ASSERT_EQ(Compare(alone, CheckTopK(input, truth, call)), "")
                << Describe(input.spec()) << " | " << Describe(call);
          }
        }
      }
    }
  }
}

// Some rows have too few elements for a first pass, in calls that split the other rows.
TEST(TopKThreads, RangesOfAllLengths) {
  constexpr int32_t n = 70001;
  const Input input({Distribution::kNormal, DType::kF32, 5, n, n, 64, 0, true, 2});
  const std::vector<int32_t> starts = {0, 100, 69000, 0, 500};
  const std::vector<int32_t> ends = {n, 90, n, 0, 60000};
  for (const int32_t k : {1, 64, 5000}) {
    const auto run = [&](int threads) {
      std::vector<int32_t> indices(static_cast<size_t>(5 * k));
      TopKOptions options;
      options.pool = &PoolOf(threads);
      TopKPerRow(input.view(), starts, ends, k, {indices.data(), k}, options);
      return indices;
    };
    const std::vector<int32_t> alone = run(1);
    for (const int threads : {2, 3, 5}) {
      ASSERT_EQ(run(threads), alone) << "k=" << k << " threads=" << threads;
    }
  }
}

// Makes calls from `callers` threads at once and checks each; `pool_of` gives the pool of each
// thread.
template <typename PoolOfCaller>
void CallFromManyThreads(int callers, const PoolOfCaller& pool_of) {
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      const int64_t rows = 1 + caller;
      const int64_t n = 20000 + 111 * caller;
      const Input input({Distribution::kTies, kDTypes[caller % 3], rows, n, n, 50, 0, true,
                         static_cast<uint64_t>(caller)});
      const Truth truth(input.view(), 50);
      std::vector<uint8_t> values(static_cast<size_t>(rows * 50 * 8));
      std::vector<int32_t> indices(static_cast<size_t>(rows * 50));
      TopKOptions options;
      options.pool = pool_of(caller);
      options.algorithm = caller % 4 == 3 ? Algorithm::kLaneSort : Algorithm::kAuto;
      for (int repeat = 0; repeat < 40; ++repeat) {
        std::fill(indices.begin(), indices.end(), -7);
        TopK(input.view(), 50, {values.data(), 50, indices.data(), 50}, options);
        for (int64_t row = 0; row < rows; ++row) {
          wrong += !std::equal(indices.begin() + row * 50, indices.begin() + row * 50 + 50,
                               truth.columns[static_cast<size_t>(row)].begin());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(TopKThreads, ManyCallersOnOnePool) {
  ThreadPool pool(3);
  CallFromManyThreads(5, [&](int) { return &pool; });
}

TEST(TopKThreads, ManyCallersOnTheDefaultPool) {
  CallFromManyThreads(4, [](int) -> ThreadPool* { return nullptr; });
}

TEST(TopKThreads, ManyCallersOnTheirOwnPools) {
  ThreadPool pools[] = {ThreadPool(1), ThreadPool(2), ThreadPool(3)};
  CallFromManyThreads(3, [&](int caller) { return &pools[caller]; });
}

TEST(TopKThreads, ResizedWhileCalled) {
  const int before = NumThreads();
  std::atomic<bool> done{false};
  std::thread resizer([&] {
    for (int i = 0; !done; ++i) SetNumThreads(1 + i % 4);
  });
  CallFromManyThreads(3, [](int) -> ThreadPool* { return nullptr; });
  done = true;
  resizer.join();
  SetNumThreads(before);
  EXPECT_EQ(NumThreads(), before);
}

}  // namespace
}  // namespace riffle::test
