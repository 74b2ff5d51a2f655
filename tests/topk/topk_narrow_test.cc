// TopK of rows of few columns, of which a vector takes many at once: all numbers of rows around
// those that a vector takes, with every length up to the one from which rows are taken one by one.
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "riffle/topk.h"
#include "testing/reference.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

const std::vector<DType> kDTypes = AllDTypes();

class TopKNarrowTest : public testing::TestWithParam<std::tuple<DType, Distribution>> {};

TEST_P(TopKNarrowTest, EveryNumberOfRows) {
  const auto [dtype, distribution] = GetParam();
  Rng rng(FromEnvironment("RIFFLE_TEST_SEED", 9));
  for (const int64_t n :
       {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, 127, 128, 129, 200, 255, 256, 257}) {
    for (int64_t rows = 1; rows <= 35; rows += rng.Between(1, rows < 10 ? 3 : 9)) {
      const std::vector<int64_t> ks{1, 2, 3, 4, 5, 8, 9, 16, 17, 40, n / 2, n - 1, n};
      const int64_t k = std::clamp<int64_t>(rng.Pick(ks), 1, n);
      const std::vector<int64_t> strides{n, n + rng.Below(9), -n - rng.Below(5), 1, 0};
      const Input input({distribution, dtype, rows, n, rng.Pick(strides), k,
                         rng.OneIn(2) ? 0 : rng.Below(64), !rng.OneIn(4), rng.Next()});
      Call call;
      call.k = {static_cast<int32_t>(k)};
      call.sorted = !rng.OneIn(3);
      call.largest = !rng.OneIn(3);
      call.wide = rng.OneIn(2);
      call.values_gap = rng.Below(3);
      call.indices_gap = rng.Below(3);
      call.values_shift = static_cast<size_t>(rng.Below(64));
      const Truth truth(input.view(), k, call.largest);
      ASSERT_EQ(CheckTopKOnAllTargets(input, truth, call), "");
    }
  }
}

// A row's answer does not depend on the rows beside it, which decide how it is found.
TEST_P(TopKNarrowTest, UnsortedRowsAloneAndTogether) {
  const auto [dtype, distribution] = GetParam();
  for (const int64_t n : {40, 100, 256}) {
    const int64_t rows = 19;
    const int64_t k = n / 2;
    const Input input({distribution, dtype, rows, n, n, k, 0, true, 11});
    const auto size = static_cast<size_t>(rows * k);
    std::vector<uint64_t> values(size);
    std::vector<int32_t> together(size);
    std::vector<int32_t> alone(size);
    MatrixView x = input.view();
    TopK(x, k, {values.data(), k, together.data(), k}, {.sorted = false});
    const auto* first = static_cast<const uint8_t*>(x.data);
    x.rows = 1;
    for (int64_t row = 0; row < rows; ++row) {
      x.data = first + row * n * static_cast<int64_t>(SizeOf(dtype));
      TopK(x, k, {values.data(), k, alone.data() + row * k, k}, {.sorted = false});
    }
    ASSERT_EQ(together, alone) << n;
  }
}

std::string ParamName(const testing::TestParamInfo<TopKNarrowTest::ParamType>& info) {
  std::string name = Concat(Name(std::get<0>(info.param)), '_', Name(std::get<1>(info.param)));
  std::ranges::replace(name, '-', 'n');
  return name;
}
INSTANTIATE_TEST_SUITE_P(All, TopKNarrowTest,
                         testing::Combine(testing::ValuesIn(kDTypes),
                                          testing::ValuesIn(AllDistributions())),
                         ParamName);

// More rows than one thread takes at a time.
TEST(TopKNarrow, ManyRowsOnThreads) {
  for (const DType dtype : kDTypes) {
    for (const int64_t n : {16, 64}) {
      const Input input({Distribution::kTies, dtype, 3001, n, n, 9, 0, true, 12});
      const Truth truth(input.view(), 9);
      for (const int threads : {1, 2, 3}) {
        Call call;
        call.k = {9};
        call.threads = threads;
        ASSERT_EQ(CheckTopKOnAllTargets(input, truth, call), "");
      }
    }
  }
}

}  // namespace
}  // namespace riffle::test
