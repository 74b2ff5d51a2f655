// Compares MergeStates over disjoint parts of the keys with one call over all of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "riffle/attention.h"
#include "riffle/error.h"
#include "testing/attention_case.h"
#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/rng.h"

namespace riffle::test {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

class MergeTest : public testing::Test {
 protected:
  ~MergeTest() override { SetTarget(""); }
};

// Parts are pages of one sequence: a decode over some pages is attention over a part of the keys.
TEST_F(MergeTest, PartsOfAPageTable) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    AttentionSpec spec{
        .q_lens = {1}, .kv_lens = {640}, .dim = 72, .q_dtype = dtype, .kv_dtype = dtype};
    const AttentionCase attention(spec);
    const int heads = attention.heads();
    for (const std::string& target : Targets()) {
      SetTarget(target);
      const PagedBatch whole = attention.batch();
      std::vector<std::vector<uint8_t>> outs;
      std::vector<std::vector<float>> lses;
      std::vector<AttentionPart> parts;
      int page = 0;
      for (const int pages : {3, 0, 30, 7}) {  // one part is empty
        outs.emplace_back(static_cast<size_t>(heads * spec.dim) * SizeOf(dtype));
        lses.emplace_back(static_cast<size_t>(heads));
        const int32_t length = pages * spec.page_size;
        PagedBatch batch = whole;
        batch.kv_lens = {&length, 1};
        batch.page_table += page;
        batch.max_pages -= page;
        PagedAttention(attention.q(), attention.keys(), attention.values(), batch,
                       {outs.back().data(), heads * spec.dim, spec.dim, lses.back().data(), heads});
        if (pages == 0) {  // the contents of an empty part do not matter
          std::fill(outs.back().begin(), outs.back().end(), uint8_t{0xff});
        }
        page += pages;
      }
      for (size_t i = 0; i < outs.size(); ++i) {
        HeadsView view = attention.q();
        view.data = outs[i].data();
        parts.push_back({view, lses[i].data(), heads});
      }
      AttentionResult merged;
      merged.tokens = 1;
      merged.heads = heads;
      merged.dim = spec.dim;
      merged.dtype = dtype;
      merged.out.resize(outs[0].size());
      merged.lse.resize(static_cast<size_t>(heads));
      MergeStates(parts, {merged.out.data(), heads * spec.dim, spec.dim, merged.lse.data(), heads});
      const AttentionResult all = attention.Run();
      // Every part was rounded to its dtype, and so is the merged result: values are below 4.
      const double item = dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 0x1p-9 : 0x1p-6;
      for (int head = 0; head < heads; ++head) {
        for (int i = 0; i < spec.dim; ++i) {
          ASSERT_NEAR(merged.Value(0, head, i), all.Value(0, head, i), item) << target;
        }
        ASSERT_NEAR(merged.lse[static_cast<size_t>(head)], all.lse[static_cast<size_t>(head)],
                    2e-6);
      }
    }
  }
}

struct Parts {
  static constexpr int kDim = 32;
  std::vector<std::vector<float>> outs;
  std::vector<float> lses;
  std::vector<float> merged = std::vector<float>(kDim, -5.0f);
  float lse = -5.0f;

  void Add(float value, float part_lse) {
    outs.emplace_back(kDim, value);
    lses.push_back(part_lse);
  }
  void Merge() {
    std::vector<AttentionPart> parts;
    for (size_t i = 0; i < outs.size(); ++i) {
      parts.push_back({{outs[i].data(), DType::kF32, 1, 1, kDim, kDim, kDim}, &lses[i], 1});
    }
    MergeStates(parts, {merged.data(), kDim, kDim, &lse, 1});
  }
};

TEST_F(MergeTest, EmptyPartsAloneGiveZeros) {
  Parts parts;
  parts.Add(NAN, kMinusInf);
  parts.Add(3, kMinusInf);
  parts.Merge();
  EXPECT_EQ(parts.merged, std::vector<float>(Parts::kDim, 0.0f));
  EXPECT_EQ(parts.lse, kMinusInf);
}

// Some engines write +inf as the lse of a part that saw no key.
TEST_F(MergeTest, PlusInfinityIsEmptyToo) {
  const float inf = -kMinusInf;
  Parts parts;
  parts.Add(NAN, inf);
  parts.Add(2, 1.5f);
  parts.Add(7, kMinusInf);
  parts.Add(-inf, inf);
  parts.Merge();
  EXPECT_EQ(parts.merged, std::vector<float>(Parts::kDim, 2.0f));
  EXPECT_EQ(parts.lse, 1.5f);
  Parts none;
  none.Add(3, inf);
  none.Add(NAN, kMinusInf);
  none.Merge();
  EXPECT_EQ(none.merged, std::vector<float>(Parts::kDim, 0.0f));
  EXPECT_EQ(none.lse, kMinusInf);
}

TEST_F(MergeTest, OnePartIsKeptBitForBit) {
  Parts parts;
  parts.Add(NAN, kMinusInf);
  parts.Add(0.1f, -300.0f);
  parts.Merge();
  EXPECT_EQ(parts.merged, std::vector<float>(Parts::kDim, 0.1f));
  EXPECT_EQ(parts.lse, -300.0f);
}

TEST_F(MergeTest, LargeLogSumExpsDoNotOverflow) {
  Parts parts;
  parts.Add(1, 30000.0f);
  parts.Add(3, 30000.0f);
  parts.Add(7, -30000.0f);
  parts.Merge();
  EXPECT_FLOAT_EQ(parts.merged[5], 2.0f);
  EXPECT_FLOAT_EQ(parts.lse, 30000.0f + std::log(2.0f));
}

TEST_F(MergeTest, NaNShows) {
  Parts parts;
  parts.Add(1, NAN);
  parts.Add(3, 1);
  parts.Merge();
  EXPECT_TRUE(std::isnan(parts.merged[0]));
  EXPECT_TRUE(std::isnan(parts.lse));
}

TEST_F(MergeTest, BadParts) {
  EXPECT_THROW(MergeStates({}, {}), Error);
  std::vector<float> x(64), y(64), out(64);
  float lse[2] = {0, 0};
  const auto part = [&](std::vector<float>& data, int64_t dim, DType dtype) {
    return AttentionPart{{data.data(), dtype, 1, 1, dim, dim, dim}, lse, 1};
  };
  const auto merge = [&](const AttentionPart& a, const AttentionPart& b, float* to) {
    const AttentionPart parts[] = {a, b};
    MergeStates(parts, {to, 32, 32, nullptr, 0});
  };
  EXPECT_NO_THROW(merge(part(x, 32, DType::kF32), part(y, 32, DType::kF32), out.data()));
  EXPECT_THROW(merge(part(x, 32, DType::kF32), part(y, 40, DType::kF32), out.data()), Error);
  EXPECT_THROW(merge(part(x, 32, DType::kF32), part(y, 32, DType::kF16), out.data()), Error);
  EXPECT_THROW(merge(part(x, 32, DType::kF32), part(y, 32, DType::kF32), y.data() + 31), Error);
}

}  // namespace
}  // namespace riffle::test
