// TopKPerRow and its decode form: ranges of rows, indices relative to them, padding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "riffle/error.h"
#include "riffle/topk.h"
#include "testing/error_check.h"
#include "testing/ranges_check.h"

namespace riffle::test {
namespace {

const std::vector<DType> kDTypes = AllDTypes();

InputSpec Spec(Distribution distribution, DType dtype, int64_t rows, int64_t n, uint64_t seed) {
  return {distribution, dtype, rows, n, n, 64, 0, true, seed};
}

TEST(TopKPerRow, ByHand) {
  const std::vector<float> x = {9, 1, 7, 7, -NAN, 3, 0, 5};  // one row of 8
  const MatrixView view{x.data(), DType::kF32, 1, 8, 8};
  const auto run = [&](int32_t start, int32_t end, int64_t k) {
    std::vector<int32_t> indices(static_cast<size_t>(k), 99);
    TopKPerRow(view, std::vector{start}, std::vector{end}, k, {indices.data(), k});
    return indices;
  };
  EXPECT_EQ(run(0, 8, 3), (std::vector<int32_t>{4, 0, 2}));
  EXPECT_EQ(run(1, 4, 2), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(run(1, 4, 5), (std::vector<int32_t>{1, 2, 0, -1, -1}));
  EXPECT_EQ(run(5, 8, 20)[3], -1);
  EXPECT_EQ(run(3, 3, 2), (std::vector<int32_t>{-1, -1}));
  EXPECT_EQ(run(6, 2, 2), (std::vector<int32_t>{-1, -1}));
  EXPECT_EQ(run(8, 8, 1), (std::vector<int32_t>{-1}));
  EXPECT_EQ(run(2147483647, 0, 1), (std::vector<int32_t>{-1}));
  EXPECT_EQ(run(0, -2147483647 - 1, 1), (std::vector<int32_t>{-1}));
  EXPECT_EQ(run(7, 8, 1), (std::vector<int32_t>{0}));
}

// One call with ranges of every kind: whole, empty, reversed, of one element, shorter than k, at
// either end.
TEST(TopKPerRow, RangesOfEveryKind) {
  for (const DType dtype : kDTypes) {
    for (const Distribution distribution : AllDistributions()) {
      for (const int32_t n : {1, 40, 3000}) {
        Ranges ranges;
        ranges.starts = {0, 0, n, n / 2, n - 1, n / 3, n / 4, std::min(n, 1), 0};
        ranges.ends = {n, 0, n, 0, n, n / 2, n, n, n - 1};
        const auto rows = static_cast<int64_t>(ranges.starts.size());
        const Input input(Spec(distribution, dtype, rows, n, 11));
        for (const int32_t k : {1, 64, n, n + 70}) {
          ranges.k = k;
          ranges.gap = k % 3;
          for (const Algorithm algorithm : AlgorithmsFor(dtype)) {
            ranges.algorithm = algorithm;
            ASSERT_EQ(CheckRangesOnAllTargets(input, ranges), "");
          }
        }
      }
    }
  }
}

// As in FlashInfer and vLLM, the answer of a range of at most k elements is in column order.
TEST(TopKPerRow, IndexOrderIfShort) {
  const std::vector<float> x = {9, 1, 7, 7, -NAN, 3, 0, 5};
  const MatrixView view = View(x.data(), 1, 8);
  const auto run = [&](int32_t start, int32_t end, int64_t k) {
    std::vector<int32_t> indices(static_cast<size_t>(k), 99);
    TopKPerRow(view, std::vector{start}, std::vector{end}, k, {indices.data(), k},
               {.index_order_if_short = true});
    return indices;
  };
  EXPECT_EQ(run(2, 6, 3), (std::vector<int32_t>{2, 0, 1}));
  EXPECT_EQ(run(2, 6, 4), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(run(2, 6, 6), (std::vector<int32_t>{0, 1, 2, 3, -1, -1}));
  EXPECT_EQ(run(6, 2, 2), (std::vector<int32_t>{-1, -1}));
  std::vector<int32_t> indices(6, 99);
  TopKPerRowDecode(View(x.data(), 2, 4), std::vector{4}, 2, 3, {indices.data(), 3},
                   {.index_order_if_short = true});
  EXPECT_EQ(indices, (std::vector<int32_t>{0, 1, 2, 0, 3, 1}));
}

// A few rows of the shape with which vLLM and FlagGems are called.
TEST(TopKPerRow, PublishedShape) {
  constexpr int32_t kVocabulary = 129280;
  const Input input(Spec(Distribution::kNormal, DType::kF32, 4, kVocabulary, 12));
  Ranges ranges;
  ranges.starts = {0, 17, 128000, 5};
  ranges.ends = {kVocabulary, 70001, kVocabulary, 900};
  ranges.k = 1024;
  for (const int threads : {1, 2}) {
    ranges.threads = threads;
    ASSERT_EQ(CheckRangesOnAllTargets(input, ranges), "");
  }
}

TEST(TopKPerRow, RandomCases) {
  const uint64_t seed = FromEnvironment("RIFFLE_TEST_SEED", 1);
  const uint64_t cases = FromEnvironment("RIFFLE_TEST_CASES", 400);
  for (uint64_t i = 0; i < cases; ++i) {
    Rng rng(seed + i);
    const auto n =
        static_cast<int32_t>(rng.OneIn(10) ? rng.Between(1, 40000) : rng.Between(1, 3000));
    InputSpec spec =
        Spec(rng.Pick(AllDistributions()), rng.Pick(kDTypes), rng.Between(0, 12), n, rng.Next());
    spec.row_stride = rng.Pick(std::vector<int64_t>{n, n + rng.Below(9), -n, 0, -1});
    spec.shift = rng.Below(4);
    const Input input(spec);
    Ranges ranges;
    for (int64_t row = 0; row < spec.rows; ++row) {
      ranges.starts.push_back(static_cast<int32_t>(rng.Between(0, n)));
      ranges.ends.push_back(static_cast<int32_t>(rng.Between(0, n)));
      if (ranges.starts.back() > ranges.ends.back() && !rng.OneIn(6)) {
        std::swap(ranges.starts.back(), ranges.ends.back());
      }
    }
    ranges.k = static_cast<int32_t>(rng.Between(1, rng.Pick(std::vector{8, 100, 2000})));
    ranges.sorted = !rng.OneIn(3);
    ranges.algorithm = rng.Pick(AlgorithmsFor(spec.dtype));
    ranges.threads = rng.Pick(std::vector{1, 2, 3, 5});
    ranges.gap = rng.Below(5);
    ranges.index_order_if_short = rng.OneIn(4);
    ASSERT_EQ(CheckRangesOnAllTargets(input, ranges), "")
        << "RIFFLE_TEST_SEED=" << seed + i << " RIFFLE_TEST_CASES=1 repeats it";
  }
}

// Row r has the range [0, seq_lens[r / next_n] - next_n + r % next_n + 1).
TEST(TopKPerRowDecode, SeesItsColumns) {
  constexpr int64_t n = 500;
  for (const int next_n : {1, 2, 3}) {
    const std::vector<int32_t> lens = {500, 1, 77, 3, 0, 2, std::numeric_limits<int32_t>::min()};
    const auto rows = static_cast<int64_t>(lens.size()) * next_n;
    const Input input(Spec(Distribution::kTies, DType::kBF16, rows, n, 13));
    Ranges ranges = DecodeRanges(lens, next_n);
    for (const int32_t k : {1, 5, 100, 600}) {
      ranges.k = k;
      ASSERT_EQ(CheckRangesOnAllTargets(input, ranges), "");
    }
  }
}

// The published rule worked out by hand: two tokens of a sequence of length five, and a sequence of
// length one.
TEST(TopKPerRowDecode, ByHand) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const MatrixView view{x.data(), DType::kF32, 4, 6, 0};
  std::vector<int32_t> indices(8, 99);
  TopKPerRowDecode(view, std::vector<int32_t>{5, 1}, 2, 2, {indices.data(), 2});
  EXPECT_EQ(indices, (std::vector<int32_t>{3, 2, 4, 3, -1, -1, 0, -1}));
}

TEST(TopKPerRow, NoRows) {
  TopKPerRow({nullptr, DType::kF32, 0, 10, 10}, {}, {}, 3, {nullptr, 3});
  TopKPerRowDecode({nullptr, DType::kF32, 0, 10, 10}, {}, 2, 3, {nullptr, 3});
}

// Expects that a bad call throws `code`, names each of `words` and writes nothing.
class BadCall {
 public:
  static constexpr int64_t kRows = 3;
  static constexpr int64_t kCols = 10;

  BadCall() : input_(Spec(Distribution::kNormal, DType::kF32, kRows, kCols, 1)) {}

  template <typename CallWith>
  void Expect(Code code, const std::vector<std::string>& words, const CallWith& call) {
    Output out(kRows, 4, 4, sizeof(int32_t));
    ExpectError(code, words, [&] {
      call(input_.view(), OutView<int32_t>{reinterpret_cast<int32_t*>(out.data()), 4});
    });
    EXPECT_EQ(out.Difference("indices"), "");
  }

  void ExpectRanges(Code code, const std::vector<std::string>& words, std::vector<int32_t> starts,
                    std::vector<int32_t> ends, int64_t k = 4) {
    Expect(code, words, [&](const MatrixView& x, const OutView<int32_t>& out) {
      TopKPerRow(x, starts, ends, k, out);
    });
  }

 private:
  Input input_;
};

TEST(TopKPerRowErrors, Ranges) {
  BadCall bad;
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  bad.ExpectRanges(Code::kBadRange, {"ends", "2", "11", "10"}, {0, 0, 0}, {1, 2, 11});
  bad.ExpectRanges(Code::kBadRange, {"starts", "1", "-1"}, {0, -1, 0}, {1, 2, 10});
  bad.ExpectRanges(Code::kBadRange, {"ends", "2147483647"}, {0, 0, 0}, {1, 2, kMax});
  bad.ExpectRanges(Code::kBadRange, {"starts", "-2147483648"}, {0, 0, kMin}, {1, 2, kMax});
  bad.ExpectRanges(Code::kBadShape, {"starts", "2", "3"}, {0, 0}, {1, 2, 3});
  bad.ExpectRanges(Code::kBadShape, {"ends", "4", "3"}, {0, 0, 0}, {1, 2, 3, 4});
  bad.ExpectRanges(Code::kBadShape, {"starts", "0", "3"}, {}, {1, 2, 3});
}

TEST(TopKPerRowErrors, K) {
  BadCall bad;
  for (const int64_t k : {int64_t{0}, int64_t{-4}, int64_t{1} << 31, int64_t{1} << 40}) {
    bad.ExpectRanges(Code::kBadK, {"k", std::to_string(k)}, {0, 0, 0}, {1, 2, 3}, k);
  }
}

TEST(TopKPerRowErrors, Outputs) {
  BadCall bad;
  const std::vector<int32_t> zeros(3, 0), ends(3, 5);
  bad.Expect(Code::kBadShape, {"indices"}, [&](const MatrixView& x, const OutView<int32_t>&) {
    TopKPerRow(x, zeros, ends, 4, {nullptr, 4});
  });
  for (const int64_t stride : {0, 1, 3, -3}) {
    bad.Expect(Code::kOverlap, {"indices", std::to_string(stride)},
               [&](const MatrixView& x, const OutView<int32_t>& out) {
                 TopKPerRow(x, zeros, ends, 4, {out.data, stride});
               });
  }
  bad.Expect(Code::kOverlap, {"indices"}, [&](const MatrixView& x, const OutView<int32_t>& out) {
    MatrixView same = x;
    same.data = out.data;
    TopKPerRow(same, zeros, ends, 4, out);
  });
}

TEST(TopKPerRowErrors, Decode) {
  BadCall bad;
  const auto decode = [](std::vector<int32_t> lens, int next_n) {
    return [=](const MatrixView& x, const OutView<int32_t>& out) {
      TopKPerRowDecode(x, lens, next_n, 4, out);
    };
  };
  bad.Expect(Code::kBadRange, {"seq_lens", "1", "11", "10"}, decode({3, 11, 3}, 1));
  bad.Expect(Code::kBadRange, {"seq_lens", "2147483647"}, decode({3, 3, 2147483647}, 1));
  bad.Expect(Code::kBadOption, {"next_n", "0"}, decode({3, 3, 3}, 0));
  bad.Expect(Code::kBadOption, {"next_n", "-1"}, decode({3, 3, 3}, -1));
  bad.Expect(Code::kBadShape, {"seq_lens", "2", "3"}, decode({3, 3}, 1));
  bad.Expect(Code::kBadShape, {"3"}, decode({3}, 2));
}

}  // namespace
}  // namespace riffle::test
