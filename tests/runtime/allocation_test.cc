// Calls allocate nothing once the pool's scratch has grown to the shape.
#include <gtest/gtest.h>

#include <functional>

#include "riffle/kv_cache.h"
#include "riffle/linear_topk.h"
#include "riffle/sampling.h"
#include "riffle/topk.h"
#include "riffle/write_kv.h"
#include "testing/allocations.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

// The int32 indices of an output.
OutView<int32_t> Int32(const TopKOut& out) {
  return {static_cast<int32_t*>(out.indices), out.indices_stride};
}

int64_t AllocationsOf(const std::function<void()>& call) {
  const int64_t before = Allocations();
  call();
  return Allocations() - before;
}

class SteadyState : public testing::Test {
 protected:
  static constexpr int64_t kRows = 4;
  static constexpr int64_t kCols = 40000;

  // The first call may allocate; later ones must not, whatever their data are.
  void ExpectSteady(
      DType dtype, const TopKOptions& options,
      const std::function<void(const MatrixView&, const TopKOut&, const TopKOptions&)>& call) {
    const Input normal({Distribution::kNormal, dtype, kRows, kCols, kCols, 64, 0, true, 1});
    const Input equal({Distribution::kAllEqual, dtype, kRows, kCols, kCols, 64, 0, true, 1});
    std::vector<float> values(static_cast<size_t>(kRows * 2000));
    std::vector<int32_t> indices(values.size());
    std::vector<TopKStats> stats(static_cast<size_t>(kRows));
    const TopKOut out{values.data(), 2000, indices.data(), 2000, stats.data()};
    const int64_t first = AllocationsOf([&] { call(normal.view(), out, options); });
    EXPECT_GT(first, 0) << "the counter does not count";
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(AllocationsOf([&] { call(normal.view(), out, options); }), 0) << "call " << i;
      EXPECT_EQ(AllocationsOf([&] { call(equal.view(), out, options); }), 0) << "all equal";
    }
  }
};

TEST_F(SteadyState, TopK) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Algorithm algorithm : {Algorithm::kBucketMaxima, Algorithm::kLaneSort}) {
      for (const int32_t k : {1, 64, 2000}) {
        for (const int threads : {1, 3}) {
          ThreadPool pool(threads);
          TopKOptions options;
          options.algorithm = algorithm;
          options.pool = &pool;
          ExpectSteady(dtype, options,
                       [&](const MatrixView& x, const TopKOut& out, const TopKOptions& with) {
                         riffle::TopK(x, k, out, with);
                       });
        }
      }
    }
  }
}

TEST_F(SteadyState, OneLongRowAndOneKPerRow) {
  ThreadPool pool(2);
  TopKOptions options;
  options.pool = &pool;
  const std::vector<int32_t> k = {1, 700, 64, 2};
  ExpectSteady(DType::kF32, options,
               [&](const MatrixView& x, const TopKOut& out, const TopKOptions& with) {
                 MatrixView one = x;
                 one.rows = 1;
                 riffle::TopK(one, 64, out, with);
                 riffle::TopK(x, k, out, with);
               });
}

TEST_F(SteadyState, TopKPerRow) {
  ThreadPool pool(2);
  TopKOptions options;
  options.pool = &pool;
  const std::vector<int32_t> starts = {0, 5, 100, 0}, ends = {40000, 30000, 90, 1500};
  ExpectSteady(DType::kF32, options,
               [&](const MatrixView& x, const TopKOut& out, const TopKOptions& with) {
                 TopKPerRow(x, starts, ends, 1024, Int32(out), with);
                 TopKPerRowDecode(x, ends, 1, 1024, Int32(out), with);
               });
}

// Rows of every kind: greedy, candidates few and many, a nucleus small and large, all columns.
TEST_F(SteadyState, Sample) {
  ThreadPool pool(2);
  const std::vector<float> temperature = {0, 1, 1, 5};
  const std::vector<int32_t> top_k = {0, 3000, 64, 0};
  const std::vector<float> top_p = {1, 0.9f, 0.9f, 0.99f};
  std::vector<float> logprobs(kRows);
  ExpectSteady(DType::kF32, {}, [&](const MatrixView& x, const TopKOut& out, const TopKOptions&) {
    for (const std::span<const float> p : {std::span<const float>(top_p), {}}) {
      riffle::Sample(x, {Int32(out).data, static_cast<size_t>(kRows)}, logprobs,
                     {.temperature = temperature, .top_k = top_k, .top_p = p, .pool = &pool});
    }
  });
}

// Writes one token, and so many tokens that threads take part.
TEST_F(SteadyState, KvCacheWrite) {
  KvCacheOptions options;
  options.pages = 128;
  const std::vector<float> ones(size_t{2000} * 128, 1.0f);
  ThreadPool pool(2);
  KvCache cache(options);
  EXPECT_GT(AllocationsOf([&] { cache.Extend(cache.Create(), 2000); }), 0);
  const auto write = [&](int64_t tokens) {
    const HeadsView view{ones.data(), DType::kF32, tokens, 1, 128, 128, 128};
    cache.Write(0, 1, 0, view, view, {.pool = &pool});
  };
  for (const int64_t tokens : {1, 2000}) {
    EXPECT_EQ(AllocationsOf([&] { write(tokens); }), 0) << tokens;
  }
}

// By slots, of few tokens and of many, from one of which the last two slots are equal.
TEST_F(SteadyState, WriteKv) {
  const std::vector<float> ones(size_t{2000} * 128, 1.0f);
  std::vector<uint8_t> pages(2 * 2048 * 128), scales(2 * 2048 * 4);
  std::vector<int32_t> slots;
  for (int32_t t = 0; t < 2000; ++t) slots.push_back(t % 1999);
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto write = [&](int64_t tokens) {
      const HeadsView view{ones.data(), DType::kF32, tokens, 1, 128, 128, 128};
      PagedKvOut keys{pages.data(), DType::kE4M3, 128, 16, 1, 128, 2048, 128, 128};
      keys.scales.page_stride = 16;
      keys.scales.token_stride = 1;
      keys.computed_scales = scales.data();
      PagedKvOut values = keys;
      values.data = pages.data() + 2048 * 128;
      values.computed_scales = scales.data() + 2048 * 4;
      riffle::WriteKv(view, view, IndexSpan(slots.data(), static_cast<size_t>(tokens)), keys,
                      values, {&pool});
    };
    EXPECT_GT(AllocationsOf([&] { write(2000); }), 0) << "the counter does not count";
    for (const int64_t tokens : {2000, 1, 100, 300}) {
      EXPECT_EQ(AllocationsOf([&] { write(tokens); }), 0) << tokens << ", " << threads;
    }
  }
}

TEST_F(SteadyState, Linear) {
  const int64_t vocab = 5000;
  const std::vector<float> x(20 * 300, 1.0f), weight(static_cast<size_t>(vocab * 300), 0.5f);
  std::vector<float> y(static_cast<size_t>(20 * vocab)), values(20 * 64);
  std::vector<int32_t> indices(values.size());
  const WeightView w{weight.data(), WeightFormat::kF32, vocab, 300, 300};
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto call = [&](int64_t rows) {
      const MatrixView view{x.data(), DType::kF32, rows, 300, 300};
      riffle::Linear(view, w, {y.data(), vocab}, {.pool = &pool});
      LinearTopK(view, w, 64, {values.data(), 64, indices.data(), 64}, {.pool = &pool});
    };
    EXPECT_GT(AllocationsOf([&] { call(20); }), 0) << "the counter does not count";
    for (const int64_t rows : {20, 1, 13}) {
      EXPECT_EQ(AllocationsOf([&] { call(rows); }), 0)
          << rows << " rows, " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace riffle::test
