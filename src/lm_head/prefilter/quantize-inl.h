// Quantises rows of x to int8 and bounds the error of doing so. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PREFILTER_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PREFILTER_QUANTIZE_INL_H_
#undef RIFFLE_LM_HEAD_PREFILTER_QUANTIZE_INL_H_
#else
#define RIFFLE_LM_HEAD_PREFILTER_QUANTIZE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/int8_dot-inl.h"
#include "lm_head/lanes-inl.h"
#include "lm_head/prefilter/prefilter_args.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Int8Dot;

// Squared norms of a row x and of x - x', where x' is the quantised row.
struct SquaredNorms {
  double x = 0;
  double error = 0;
};

// The bits of 2^64. Infinity and NaNs have larger bits still.
constexpr int32_t kTooLarge = std::bit_cast<int32_t>(0x1p64f);
constexpr float kTooSmall = 0x1p-100f;  // smaller numbers become zero

// 32 inputs as step * q, |q| <= max_q.
struct QuantizedBlock {
  alignas(64) int32_t q[kQ8Block];
  int32_t sum;  // of q
  float step;
};

// Returns false if an input is not finite or is too large.
template <DType kType>
HWY_INLINE bool QuantizeBlock(const uint8_t* inputs, int32_t max_q, QuantizedBlock& block,
                              SquaredNorms& squared) {
  const LaneF32 df;
  const LaneI32 di;
  constexpr int kVectors = static_cast<int>(kQ8Block) / kLanes;
  VecF32 x[kVectors];
  auto magnitude = hn::Zero(di);
  for (int i = 0; i < kVectors; ++i) {
    x[i] = LoadF32<kType>(inputs + static_cast<size_t>(i * kLanes) * SizeOf(kType));
    magnitude = hn::Max(magnitude, hn::And(hn::BitCast(di, x[i]), hn::Set(di, 0x7fffffff)));
  }
  const int32_t bits = hn::ReduceMax(di, magnitude);
  if (bits >= kTooLarge) {
    return false;
  }
  block = {};
  const float largest = std::bit_cast<float>(bits);
  if (largest < kTooSmall) {
    squared.x += kQ8Block * double{kTooSmall} * kTooSmall;
    squared.error += kQ8Block * double{kTooSmall} * kTooSmall;
    return true;
  }
  block.step = largest / static_cast<float>(max_q);
  const auto inverse = hn::Set(df, static_cast<float>(max_q) / largest);
  const auto limit = hn::Set(di, max_q);
  auto sum = hn::Zero(di);
  auto squares = hn::Zero(df);
  auto errors = hn::Zero(df);
  for (int i = 0; i < kVectors; ++i) {
    const auto t = hn::Mul(x[i], inverse);
    // Without the clamp, |q| could exceed the limit under another rounding mode.
    const auto q = hn::Min(hn::Max(hn::NearestInt(t), hn::Neg(limit)), limit);
    const auto error = hn::Sub(t, hn::ConvertTo(df, q));
    squares = hn::MulAdd(t, t, squares);
    errors = hn::MulAdd(error, error, errors);
    sum = hn::Add(sum, q);
    hn::Store(q, di, block.q + i * kLanes);
  }
  block.sum = hn::ReduceSum(di, sum);
  const double step = block.step;
  squared.x += step * step * double{hn::ReduceSum(df, squares)};
  squared.error += step * step * double{hn::ReduceSum(df, errors)};
  return true;
}

HWY_INLINE void StoreInt8Block(const QuantizedBlock& block, Int8Block& to) {
  const LaneI32 di;
  const hn::Rebind<int8_t, LaneF32> d8;
  int8_t q8[kQ8Block];
  for (int i = 0; i < static_cast<int>(kQ8Block); i += kLanes) {
    hn::StoreU(hn::DemoteTo(d8, hn::Load(di, block.q + i)), d8, q8 + i);
  }
  std::memcpy(to.lanes, q8, sizeof(q8));
  to.initial_sum = -Int8Dot::kBias * block.sum;
  to.step = block.step;
}

// Stores block `number` of a row where a column of W has that block's weights.
inline void StoreInplaceBlock(const QuantizedBlock& block, int64_t number, InplaceLine* lines) {
  for (int i = 0; i < static_cast<int>(kQ8Block); ++i) {
    const auto at = static_cast<size_t>(number * kQ8BlockBytes + 2 + i);
    InplaceLine& line = lines[at / sizeof(line.high)];
    const size_t byte = at % sizeof(line.high);
    const int32_t high = (block.q[i] + 64) >> 7;
    HWY_DASSERT(line.high[byte] == 0 && line.low[byte] == 0);
    line.high[byte] = static_cast<int8_t>(high);
    line.low[byte] = static_cast<int8_t>(block.q[i] - 128 * high);
    line.initial_sum[byte / 4] -= Int8Dot::kBias / 128 * block.q[i];
    line.step[byte / 4] = block.step;
  }
}

// The error bound of a row's approximate logits; docs/prefilter.md derives the constants.
HWY_INLINE ErrorBound ErrorOf(const SquaredNorms& squares, double blocks) {
  constexpr double kMargin = 1 + 0x1p-10;  // covers the rounding errors of the lines below
  const double error = std::sqrt(squares.error);
  const double rounding = 0x1p-21 * (32 + blocks) * (std::sqrt(squares.x) + error);
  return {static_cast<float>(kMargin * (error + rounding)), static_cast<float>(0x1p-96 * blocks)};
}

inline bool QuantizeRow(const PrefilterArgs& args, int64_t row) {
  const LinearArgs& linear = args.linear;
  HWY_DASSERT(0 <= row && row < linear.rows);
  HWY_DASSERT(args.blocks() > 0 && linear.d <= kMaxPrefilterInputs);
  constexpr int kKBlockBlocks = kKBlock / static_cast<int>(kQ8Block);
  const int32_t max_q = args.in_place() ? kMaxInplaceQ : 127;
  InplaceLine* lines = nullptr;
  if (args.in_place()) {
    lines = args.inplace + row * args.lines();
    std::fill_n(lines, args.lines(), InplaceLine{});
  }
  SquaredNorms squares;
  for (int i = 0; i < args.blocks(); ++i) {
    const int64_t input =
        (i / kKBlockBlocks * linear.packed_rows + row) * kKBlock + i % kKBlockBlocks * kQ8Block;
    const uint8_t* inputs = static_cast<const uint8_t*>(linear.x) + input * linear.input_bytes();
    QuantizedBlock block;
    if (!(linear.bf16_pairs ? QuantizeBlock<DType::kBF16>(inputs, max_q, block, squares)
                            : QuantizeBlock<DType::kF32>(inputs, max_q, block, squares))) {
      return false;
    }
    if (lines != nullptr) {
      StoreInplaceBlock(block, i, lines);
    } else {
      const int64_t group = i / kPrefilterBlocks;
      StoreInt8Block(block,
                     args.x[(group * linear.rows + row) * kPrefilterBlocks + i % kPrefilterBlocks]);
    }
  }
  args.errors[row] = ErrorOf(squares, args.blocks());
  return true;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
