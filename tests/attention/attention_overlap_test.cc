// Compares the check of overlaps of strided regions with a map of every byte, and tests that its
// time grows with the number of rows only.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <set>
#include <vector>

#include "core/strided.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

constexpr int64_t kBase = 1 << 20;

// Calls f(address) for every byte of every row; for a byte that two rows share, twice.
template <typename F>
void ForEachByte(const core::Strided& x, const F& f) {
  for (int64_t i = 0; i < x.size[0]; ++i) {
    for (int64_t j = 0; j < x.size[1]; ++j) {
      for (int64_t k = 0; k < x.size[2]; ++k) {
        for (int64_t byte = 0; byte < x.width; ++byte) {
          f(reinterpret_cast<intptr_t>(x.data) + i * x.stride[0] + j * x.stride[1] +
            k * x.stride[2] + byte);
        }
      }
    }
  }
}

core::Strided RandomRegion(Rng& rng, int axes) {
  core::Strided x;
  x.data = reinterpret_cast<const void*>(kBase + rng.Below(60));
  x.width = rng.Between(rng.OneIn(20) ? 0 : 1, 6);
  for (int axis = 0; axis < axes; ++axis) {
    x.size[axis] = rng.Between(rng.OneIn(20) ? 0 : 1, 5);
    x.stride[axis] = rng.Between(-30, 30);
  }
  return x;
}

TEST(Overlap, OfRandomRegionsIsExact) {
  Rng rng(3);
  int overlaps = 0;
  for (int i = 0; i < 30000; ++i) {
    const core::Strided a = RandomRegion(rng, 3);
    const core::Strided b = RandomRegion(rng, 3);
    std::set<int64_t> bytes;
    ForEachByte(a, [&](int64_t at) { bytes.insert(at); });
    bool expected = false;
    ForEachByte(b, [&](int64_t at) { expected |= bytes.count(at) > 0; });
    ASSERT_EQ(core::Overlaps(a, b), expected) << "case " << i;
    ASSERT_EQ(core::Overlaps(b, a), expected) << "case " << i;
    overlaps += expected ? 1 : 0;
  }
  EXPECT_GT(overlaps, 3000);
  EXPECT_LT(overlaps, 27000);
}

TEST(Overlap, OfRowsWithEachOtherIsExact) {
  Rng rng(4);
  int overlaps = 0;
  for (int i = 0; i < 30000; ++i) {
    const core::Strided x = RandomRegion(rng, 2);
    std::set<int64_t> bytes;
    bool expected = false;
    ForEachByte(x, [&](int64_t at) { expected |= !bytes.insert(at).second; });
    ASSERT_EQ(core::OverlapsItself(x), expected) << "case " << i;
    overlaps += expected ? 1 : 0;
  }
  EXPECT_GT(overlaps, 3000);
  EXPECT_LT(overlaps, 27000);
}

// q and out share the row of a token, as two halves or with their heads in turn. Comparing each
// head of q with each head of out would take minutes.
TEST(Overlap, OfInterleavedHeadsTakesTimeThatGrowsWithTheRows) {
  constexpr int64_t kTokens = 1 << 15;
  constexpr int64_t kHeads = 512;
  constexpr int64_t kWidth = 64;
  const auto region = [](int64_t offset, int64_t head_stride) {
    return core::Strided{reinterpret_cast<const void*>(kBase + offset),
                         {kTokens, kHeads, 1},
                         {2 * kHeads * kWidth, head_stride, 0},
                         kWidth};
  };
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(core::Overlaps(region(0, kWidth), region(kHeads * kWidth, kWidth)));
  EXPECT_TRUE(core::Overlaps(region(0, kWidth), region(kHeads * kWidth - 1, kWidth)));
  EXPECT_FALSE(core::Overlaps(region(0, 2 * kWidth), region(kWidth, 2 * kWidth)));
  EXPECT_TRUE(core::Overlaps(region(0, 2 * kWidth), region(kWidth + 1, 2 * kWidth)));
  EXPECT_FALSE(core::OverlapsItself(region(0, 2 * kWidth)));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

}  // namespace
}  // namespace riffle::test
