// Which memory TopK accesses: nothing outside of a row, at any alignment; and rows that are far
// larger or more numerous than the memory behind them.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <limits>

#include "riffle/topk.h"
#include "testing/reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

const std::vector<DType> kDTypes = AllDTypes();

// Rows that end directly before an unreadable page, and rows that begin directly behind one, at
// every offset from a vector's alignment.
TEST(TopKMemory, ReadsNothingOutsideOfRows) {
  for (const DType dtype : kDTypes) {
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    for (const int64_t length : {1, 5, 31, 33, 100, 2100, 4133}) {
      for (int64_t shift = 0; shift < 64; shift += length < 2000 ? 1 : 7) {
        // The length moves the beginning of a row that ends at a page; the shift moves both ends.
        const int64_t n = length + shift / element;
        const bool at_end = shift % 3 != 0;
        const Input input(
            {Distribution::kNormal, dtype, 2, n, n, 5, at_end ? 0 : shift, at_end, 7});
        const Truth truth(input.view(), std::min<int64_t>(n, 70));
        for (const Algorithm algorithm : AlgorithmsFor(dtype)) {
          Call call;
          call.k = {static_cast<int32_t>(std::min<int64_t>(n, shift % 2 == 0 ? 3 : 70))};
          call.algorithm = algorithm;
          call.stats = shift % 5 == 0;
          ASSERT_EQ(CheckTopKOnAllTargets(input, truth, call), "");
        }
      }
    }
  }
}

// Rows at odd addresses.
TEST(TopKMemory, NeedsNoAlignment) {
  for (const DType dtype : kDTypes) {
    for (const int64_t shift : {1, 2, 3, 5, 63}) {
      for (const bool at_end : {false, true}) {
        const int64_t n = 3001;
        const Input input({Distribution::kTies, dtype, 3, n, n + 3, 40, shift, at_end, 8});
        const Truth truth(input.view(), 40);
        for (const Algorithm algorithm : AlgorithmsFor(dtype)) {
          Call call;
          call.k = {40};
          call.algorithm = algorithm;
          call.stats = true;
          ASSERT_EQ(CheckTopKOnAllTargets(input, truth, call), "");
        }
      }
    }
  }
}

TEST(TopKMemory, OneRowSeenManyTimes) {
  const int64_t rows = 100000;
  const Input input({Distribution::kNormal, DType::kBF16, rows, 50, 0, 2, 0, true, 9});
  std::vector<uint16_t> values(static_cast<size_t>(rows) * 2);
  std::vector<int32_t> indices(values.size());
  TopK(input.view(), 2, {values.data(), 2, indices.data(), 2});
  const std::vector<int32_t> best = ReferenceTopK(input.view(), 0, 0, 50, 2);
  for (size_t i = 0; i < indices.size(); ++i) {
    ASSERT_EQ(indices[i], best[i % 2]) << i;
    ASSERT_EQ(std::memcmp(&values[i], ElementAt(input.view(), 0, best[i % 2]), 2), 0) << i;
  }
}

// The longest possible row: 2^31 - 1 elements, of which only a few are written. It has 4 GB of
// addresses and almost no memory.
TEST(TopKMemory, TheLongestRow) {
  if (kSlow) GTEST_SKIP() << "takes too long under a sanitizer or an emulator";
  constexpr int64_t n = std::numeric_limits<int32_t>::max();
  constexpr size_t bytes = static_cast<size_t>(n) * 2;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto* x = static_cast<uint16_t*>(memory);
  x[n - 1] = 0x3f80;          // 1
  x[5] = 0x3f80;              // 1
  x[n / 2] = 0x4000;          // 2
  x[n - 2] = 0xff80;          // -inf
  x[3'000'000] = 0xffc0;      // NaN
  x[2'000'000'000] = 0xbf80;  // -1
  const MatrixView view{x, DType::kBF16, 1, n, n};
  const std::vector<int32_t> expected = {
      3'000'000, static_cast<int32_t>(n / 2), 5, static_cast<int32_t>(n - 1), 0, 1, 2, 3, 4, 6};
  std::vector<uint16_t> values(10);
  std::vector<int32_t> indices(10);
  TopKStats stats;
  TopK(view, 10, {values.data(), 10, indices.data(), 10, &stats});
  EXPECT_EQ(indices, expected);
  EXPECT_EQ(values, (std::vector<uint16_t>{0xffc0, 0x4000, 0x3f80, 0x3f80, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(stats.ties_at_kth, n - 6);

  std::vector<int32_t> range(3);
  TopKPerRow(view, std::vector<int32_t>{1}, std::vector<int32_t>{static_cast<int32_t>(n)}, 3,
             {range.data(), 3});
  EXPECT_EQ(range, (std::vector<int32_t>{3'000'000 - 1, static_cast<int32_t>(n / 2) - 1, 4}));
  munmap(memory, bytes);
}

}  // namespace
}  // namespace riffle::test
