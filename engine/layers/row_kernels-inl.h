// The loops over single rows of activations. Included once per SIMD target.
#if defined(RIFFLE_ENGINE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ENGINE_ROWS_INL_H_
#undef RIFFLE_ENGINE_ROWS_INL_H_
#else
#define RIFFLE_ENGINE_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/exp-inl.h"
#include "engine/layers/row_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Exp2;
using core::HWY_NAMESPACE::Tanh;

using DRow = hn::CappedTag<float, 16>;
using VRow = hn::Vec<DRow>;

constexpr float kMaxCode = 32767;
constexpr float kMinBlockMax =
    1e-30f;  // lower bound of a block's largest magnitude: keeps 1 / step finite

// The smallest power of two that is at least x. Pre: x is positive and normal.
HWY_INLINE VRow PowerOfTwoFrom(VRow x) {
  const DRow df;
  const hn::RebindToSigned<DRow> di;
  const auto up = hn::Add(hn::BitCast(di, x), hn::Set(di, 0x007fffff));
  return hn::BitCast(df, hn::And(up, hn::Set(di, 0x7f800000)));
}
// 1 / a power of two.
HWY_INLINE VRow Inverse(VRow power) {
  const DRow df;
  const hn::RebindToSigned<DRow> di;
  return hn::BitCast(df, hn::Sub(hn::Set(di, 0x7f000000), hn::BitCast(di, power)));
}

// Rounds a block of 32 values and stores it at place `at` of `out`.
HWY_INLINE void RoundBlock(const VRow (&values)[8], int64_t at, Activations& out) {
  const DRow df;
  const hn::RebindToUnsigned<DRow> du;
  const hn::RebindToSigned<DRow> di;
  const hn::Repartition<uint16_t, DRow> du16;
  const hn::Rebind<uint8_t, decltype(du16)> du8;
  // At this magnitude a float's last bit is worth 1: adding a value rounds it to the nearest
  // integer, and the low 16 bits are that integer plus the zero point. (If a value is not finite,
  // the bytes are arbitrary and the step is NaN.)
  const VRow origin = hn::Set(df, 0x1.8p23f + kZeroPoint);
  const int lanes = static_cast<int>(hn::Lanes(df));
  // Compares magnitudes as integers, in which NaN is above infinity, and infinity above the rest.
  auto largest_bits = hn::BitCast(di, hn::Set(df, kMinBlockMax));
  for (int i = 0; i < 32 / lanes; ++i) {
    largest_bits = hn::Max(largest_bits, hn::BitCast(di, hn::Abs(values[i])));
  }
  const VRow largest = hn::BitCast(df, hn::MaxOfLanes(di, largest_bits));
  const VRow step = PowerOfTwoFrom(hn::Mul(largest, hn::Set(df, 1 / kMaxCode)));
  const VRow inverse = Inverse(step);
  uint8_t* planes = out.planes() + at * 2 * kBlock;
  VRow first = hn::Zero(df), second = hn::Zero(df);  // exact: integers below 2^24
  for (int i = 0; i < 32 / lanes; i += 2) {
    const VRow a = hn::MulAdd(values[i], inverse, origin);
    const VRow b = hn::MulAdd(values[i + 1], inverse, origin);
    (i * lanes < 16 ? first : second) =
        hn::Add(i * lanes < 16 ? first : second, hn::Sub(a, origin));
    const bool b_first = (i + 1) * lanes < 16;
    (b_first ? first : second) = hn::Add(b_first ? first : second, hn::Sub(b, origin));
    const auto q = hn::OrderedTruncate2To(du16, hn::BitCast(du, a), hn::BitCast(du, b));
    hn::StoreU(hn::TruncateTo(du8, hn::ShiftRight<8>(q)), du8, planes + i * lanes);
    hn::StoreU(hn::TruncateTo(du8, q), du8, planes + kBlock + i * lanes);
  }
  const float valid = hn::GetLane(hn::IfThenElse(hn::IsFinite(largest), step, hn::NaN(df)));
  out.step()[at] = valid;
  out.sum()[at] = valid * hn::ReduceSum(df, hn::Add(first, second));
  out.first_sum()[at] = valid * hn::ReduceSum(df, first);
}

// Rounds `count` blocks and stores them at places at, at + pitch, ...; value(b, i) returns the
// values of block b from element i on.
template <class Value>
HWY_INLINE void RoundBlocks(const Value& value, int64_t count, int64_t at, int64_t pitch,
                            Activations& out) {
  const int lanes = static_cast<int>(hn::Lanes(DRow()));
  for (int64_t b = 0; b < count; ++b) {
    VRow values[8];  // of a block, of at least 4 lanes
    for (int i = 0; i < 32 / lanes; ++i) {
      values[i] = value(b, i * lanes);
    }
    RoundBlock(values, at + b * pitch, out);
  }
}

void RoundRowOf(const float* x, int64_t row, Activations& out) {
  const DRow df;
  RoundBlocks([&](int64_t b, int i) HWY_ATTR { return hn::LoadU(df, x + b * kBlock + i); },
              out.blocks(), out.At(0, row), out.At(1, row) - out.At(0, row), out);
}

// Returns 1 / sqrt(mean(x^2) + epsilon). Pre: size is a multiple of 32.
HWY_INLINE float InverseRms(const float* x, int64_t size, float epsilon) {
  const DRow df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  VRow even = hn::Zero(df), odd = hn::Zero(df);
  for (int64_t i = 0; i < size; i += 2 * lanes) {
    const VRow a = hn::LoadU(df, x + i);
    const VRow b = hn::LoadU(df, x + i + lanes);
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  const float squares = hn::ReduceSum(df, hn::Add(even, odd));
  return 1.0f / std::sqrt(squares / static_cast<float>(size) + epsilon);
}

// Elements i.. of norm(x), given 1 / its root mean square.
HWY_INLINE VRow Normed(const float* x, const Norm& norm, VRow inverse, int64_t i) {
  const DRow df;
  return hn::Mul(hn::Mul(hn::LoadU(df, x + i), inverse), hn::LoadU(df, norm.weight + i));
}

void NormRoundRowOf(const float* x, const Norm& norm, int64_t row, Activations& out) {
  const VRow inverse = hn::Set(DRow(), InverseRms(x, out.inputs(), norm.epsilon));
  RoundBlocks([&](int64_t b, int i) HWY_ATTR { return Normed(x, norm, inverse, b * kBlock + i); },
              out.blocks(), out.At(0, row), out.At(1, row) - out.At(0, row), out);
}

void NormRowOf(const float* x, const Norm& norm, int64_t size, float* out) {
  const DRow df;
  const VRow inverse = hn::Set(df, InverseRms(x, size, norm.epsilon));
  for (int64_t i = 0; i < size; i += static_cast<int64_t>(hn::Lanes(df))) {
    hn::StoreU(Normed(x, norm, inverse, i), df, out + i);
  }
}

void AddNormRowOf(const float* x, const Norm& norm, int64_t size, float* hidden) {
  const DRow df;
  const VRow inverse = hn::Set(df, InverseRms(x, size, norm.epsilon));
  for (int64_t i = 0; i < size; i += static_cast<int64_t>(hn::Lanes(df))) {
    hn::StoreU(hn::Add(hn::LoadU(df, hidden + i), Normed(x, norm, inverse, i)), df, hidden + i);
  }
}

void AddRowOf(const float* x, int64_t size, float* sum) {
  const DRow df;
  for (int64_t i = 0; i < size; i += static_cast<int64_t>(hn::Lanes(df))) {
    hn::StoreU(hn::Add(hn::LoadU(df, sum + i), hn::LoadU(df, x + i)), df, sum + i);
  }
}

// x [size] = RoPE of value, where value(i) returns its elements from i on.
template <class Value>
HWY_INLINE void RotateRow(const Value& value, const float* turn, int64_t size, float* x) {
  const DRow df;
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i += static_cast<int64_t>(hn::Lanes(df))) {
    const VRow a = value(i);
    const VRow b = value(half + i);
    const VRow cosine = hn::LoadU(df, turn + i);
    const VRow sine = hn::LoadU(df, turn + half + i);
    hn::StoreU(hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), df, x + i);
    hn::StoreU(hn::MulAdd(a, sine, hn::Mul(b, cosine)), df, x + half + i);
  }
}

void NormRopeRowOf(const Norm& norm, const float* turn, int64_t size, float* x) {
  const VRow inverse = hn::Set(DRow(), InverseRms(x, size, norm.epsilon));
  RotateRow([&](int64_t i) HWY_ATTR { return Normed(x, norm, inverse, i); }, turn, size, x);
}

void RopeRowOf(const float* turn, int64_t size, float* x) {
  RotateRow([&](int64_t i) HWY_ATTR { return hn::LoadU(DRow(), x + i); }, turn, size, x);
}

void SoftCapRowOf(float cap, int64_t size, float* x) {
  const hn::CappedTag<float, 16> full;
  const auto soft_cap = [&](auto d, float* at, size_t count) HWY_ATTR {
    const auto value = hn::LoadN(d, at, count);
    const auto capped = Tanh(d, hn::Div(value, hn::Set(d, cap)));
    hn::StoreN(hn::Mul(capped, hn::Set(d, cap)), d, at, count);
  };
  const auto lanes = static_cast<int64_t>(hn::Lanes(full));
  for (int64_t i = 0; i < size; i += lanes) {
    soft_cap(full, x + i, static_cast<size_t>(std::min(lanes, size - i)));
  }
}

// x / (1 + 2^exponent). From 2^126 on the quotient is below 2^-120 times x, as good as 0.
HWY_INLINE VRow Gated(VRow x, VRow exponent) {
  const DRow df;
  const VRow power = Exp2(df, hn::Min(exponent, hn::Set(df, 126.0f)));
  return hn::Div(x, hn::Add(power, hn::Set(df, 1.0f)));
}

constexpr float kLog2E = 1.4426950409f;

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), where (1 + tanh(y)) / 2 = 1 / (1 + e^-2y).
HWY_INLINE VRow Gelu(VRow x) {
  const DRow df;
  constexpr float kFactor = -2 * 0.7978845608f * kLog2E;
  const VRow factor =
      hn::MulAdd(hn::Mul(x, x), hn::Set(df, 0.044715f * kFactor), hn::Set(df, kFactor));
  return Gated(x, hn::Mul(x, factor));
}

// x / (1 + e^-x).
HWY_INLINE VRow Silu(VRow x) { return Gated(x, hn::Mul(x, hn::Set(DRow(), -kLog2E))); }

}  // namespace riffle::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
