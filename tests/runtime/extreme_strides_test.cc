// Strides along axes of one element are never followed. A call that is given the largest or the
// smallest number as such a stride gives the answer that any other gives, or refuses it.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "riffle/attention.h"
#include "riffle/error.h"
#include "riffle/linear_topk.h"
#include "riffle/sampling.h"
#include "riffle/sparse_attention.h"
#include "riffle/topk.h"

namespace riffle::test {
namespace {

constexpr int64_t kWidth = 128;

std::vector<float> Numbers(int64_t count) {
  std::vector<float> x;
  for (int64_t i = 0; i < count; ++i) x.push_back(static_cast<float>(i * 7 % 17) / 8);
  return x;
}

// call(stride, out) writes numbers to out.
void ExpectNoMatter(const std::function<void(int64_t, float*)>& call) {
  std::vector<float> ordinary(kWidth);
  call(kWidth, ordinary.data());
  for (const int64_t stride : {INT64_MAX, INT64_MIN, INT64_MAX / 3}) {
    std::vector<float> out(kWidth);
    try {
      call(stride, out.data());
      EXPECT_EQ(out, ordinary) << stride;
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == Code::kBadShape || error.code() == Code::kOverlap)
          << error.what();
      EXPECT_EQ(out, std::vector<float>(kWidth)) << stride;
    }
  }
}

TEST(ExtremeStrides, TopK) {
  const std::vector<float> x = Numbers(kWidth);
  ExpectNoMatter([&](int64_t stride, float* out) {
    std::vector<int32_t> indices(4);
    TopK({x.data(), DType::kF32, 1, kWidth, stride}, 4, {out, stride, indices.data(), stride});
  });
}

TEST(ExtremeStrides, Sample) {
  const std::vector<float> x = Numbers(kWidth);
  ExpectNoMatter([&](int64_t stride, float* out) {
    int32_t token = -1;
    Sample({x.data(), DType::kF32, 1, kWidth, stride}, {&token, 1});
    *out = static_cast<float>(token);
  });
}

TEST(ExtremeStrides, Linear) {
  const std::vector<float> x = Numbers(kWidth), w = Numbers(8 * kWidth);
  ExpectNoMatter([&](int64_t stride, float* out) {
    Linear({x.data(), DType::kF32, 1, kWidth, stride},
           {w.data(), WeightFormat::kF32, 8, kWidth, kWidth}, {out, stride});
  });
  ExpectNoMatter([&](int64_t stride, float* out) {
    Linear({x.data(), DType::kF32, 1, kWidth, kWidth},
           {w.data(), WeightFormat::kF32, 1, kWidth, stride}, {out, 1});
  });
}

TEST(ExtremeStrides, PagedAttention) {
  const std::vector<float> q = Numbers(kWidth), k = Numbers(4 * kWidth), v = Numbers(4 * kWidth);
  const std::vector<int32_t> lens = {4}, table = {0};
  ExpectNoMatter([&](int64_t stride, float* out) {
    PagedKv keys{k.data(), DType::kF32, 1, 4, 1, kWidth, stride, kWidth, stride};
    PagedKv values = keys;
    values.data = v.data();
    PagedAttention({q.data(), DType::kF32, 1, 1, kWidth, stride, stride}, keys, values,
                   {{}, lens, table.data(), 1, 1}, {out, stride, stride});
  });
}

TEST(ExtremeStrides, SparseAttention) {
  const std::vector<float> q = Numbers(kWidth), rows = Numbers(kWidth);
  const int32_t slot = 0;
  ExpectNoMatter([&](int64_t stride, float* out) {
    const SparseScope scope{{rows.data(), DType::kF32, 1, kWidth, stride}, &slot, 1, 1};
    SparseAttention({q.data(), DType::kF32, 1, 1, kWidth, stride, stride}, std::span(&scope, 1),
                    {out, stride, stride}, {});
  });
}

}  // namespace
}  // namespace riffle::test
