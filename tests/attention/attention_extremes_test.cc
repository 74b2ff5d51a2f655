// Scales, soft caps and sinks at the ends of f32: the limits of exact arithmetic.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "riffle/attention.h"

namespace riffle::test {
namespace {

// A call on one head of dim 32. Queries and keys have one element that is not 0, the first; the
// value of key j is j + 1.
struct OneRow {
  float out = -5;
  float lse = -5;

  OneRow(float query, const std::vector<float>& keys, const AttentionOptions& options) {
    float q[32] = {query};
    std::vector<float> k(32 * keys.size()), v(32 * keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      k[32 * i] = keys[i];
      v[32 * i] = static_cast<float>(i + 1);
    }
    const auto n = static_cast<int64_t>(keys.size());
    const auto len = static_cast<int32_t>(n);
    const int32_t page = 0;
    const PagedKv k_view{k.data(), DType::kF32, 1, n, 1, 32, 32 * n, 32, 32 * n};
    PagedKv v_view = k_view;
    v_view.data = v.data();
    float row[32];
    PagedAttention({q, DType::kF32, 1, 1, 32, 32, 32}, k_view, v_view, {{}, {&len, 1}, &page, 1, 1},
                   {row, 32, 32, &lse, 1}, options);
    out = row[0];
  }
};

AttentionOptions Options(float scale, std::optional<float> cap = {},
                         std::span<const float> sinks = {}) {
  AttentionOptions options;
  options.scale = scale;
  options.soft_cap = cap;
  options.sinks = sinks;
  return options;
}

TEST(AttentionExtremes, ScalesThatOverflowInUnitsOfLog2) {
  constexpr float kMax = std::numeric_limits<float>::max();
  // All logits are 0, so the result is the mean of the values.
  const OneRow zeros(0, {1, 2, 3}, Options(kMax));
  EXPECT_FLOAT_EQ(zeros.out, 2);
  EXPECT_FLOAT_EQ(zeros.lse, std::log(3.0f));
  // The logits are 0, 1 and 0.
  const OneRow small(1, {0, 1 / kMax, 0}, Options(kMax));
  const double e = std::exp(static_cast<double>(1 / kMax) * static_cast<double>(kMax));
  EXPECT_NEAR(small.out, (1 + 2 * e + 3) / (2 + e), 1e-6);
  EXPECT_NEAR(small.lse, std::log(2 + e), 1e-6);
  // Logits beyond the range of f32: the largest one has the whole weight.
  EXPECT_EQ(OneRow(1, {-1, 1, 0}, Options(kMax)).out, 2);
  EXPECT_EQ(OneRow(1, {-1, 1, 0}, Options(-kMax)).out, 1);
}

TEST(AttentionExtremes, CapsAreLimits) {
  for (const float cap : {1e-45f, 1e-44f, 1e-38f}) {  // so small that all logits become equal
    const OneRow row(1, {-300, 0, 300}, Options(1.0f, cap));
    EXPECT_FLOAT_EQ(row.out, 2) << cap;
    EXPECT_FLOAT_EQ(row.lse, std::log(3.0f)) << cap;
  }
  for (const float cap : {1e30f, 2e38f, 3.4e38f}) {  // so large that it changes nothing
    const OneRow row(1, {-2, 0.5f, 1}, Options(1.0f, cap));
    const OneRow uncapped(1, {-2, 0.5f, 1}, Options(1.0f));
    EXPECT_NEAR(row.out, uncapped.out, 1e-6) << cap;
    EXPECT_NEAR(row.lse, uncapped.lse, 1e-6) << cap;
  }
}

TEST(AttentionExtremes, Sinks) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::vector<float> keys = {1, 1};
  for (const float sink : {kMax, 1e30f, -kMax, -std::numeric_limits<float>::infinity()}) {
    const OneRow row(1, keys, Options(1, {}, {&sink, 1}));
    EXPECT_FLOAT_EQ(row.out, sink > 0 ? 0 : 1.5f) << sink;
    EXPECT_FLOAT_EQ(row.lse, sink > 0 ? sink : 1 + std::log(2.0f)) << sink;
    // The logits are as small as the sink.
    const OneRow low(1, {-1e38f, -1e38f}, Options(1, {}, {&sink, 1}));
    EXPECT_FLOAT_EQ(low.out, sink > 0 ? 0 : 1.5f) << sink;
  }
}

}  // namespace
}  // namespace riffle::test
