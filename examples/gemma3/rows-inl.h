// The loops over single rows of activations. Included once per SIMD target.
#if defined(RIFFLE_EXAMPLES_GEMMA3_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_EXAMPLES_GEMMA3_ROWS_INL_H_
#undef RIFFLE_EXAMPLES_GEMMA3_ROWS_INL_H_
#else
#define RIFFLE_EXAMPLES_GEMMA3_ROWS_INL_H_
#endif

#include <hwy/highway.h>
// After highway.h: included once per target too.
#include <hwy/contrib/math/math-inl.h>

#include <cmath>
#include <limits>

#include "examples/gemma3/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::gemma3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DRow = hn::CappedTag<float, 16>;
using VRow = hn::Vec<DRow>;

constexpr float kLargest = 32639;   // = 256 * 127 + 127
constexpr float kNothing = 1e-30f;  // a block below it is zero: 1 / it must not overflow

// Rounds 32 values, value(i) those from i on, to block `block` of row `row`.
template <class Value>
HWY_INLINE void RoundBlock(const Value& value, int64_t block, int64_t row, Activations& out) {
  const DRow df;
  const hn::RebindToSigned<DRow> di;
  const hn::Rebind<int8_t, DRow> d8;
  constexpr int kMost = 32 / 4;  // vectors of a block, of at least 4 lanes
  const int lanes = static_cast<int>(hn::Lanes(df));
  VRow values[kMost];
  VRow largest = hn::Zero(df);
  auto finite = hn::FirstN(df, hn::Lanes(df));
  for (int i = 0; i < 32; i += lanes) {
    values[i / lanes] = value(i);
    largest = hn::Max(largest, hn::Abs(values[i / lanes]));
    finite = hn::And(finite, hn::IsFinite(values[i / lanes]));
  }
  const float most = hn::ReduceMax(df, largest);
  const bool valid = hn::AllTrue(df, finite);
  const float inverse = valid && most > kNothing ? kLargest / most : 0.0f;
  const int64_t at = out.At(block, row);
  int8_t* planes = out.planes() + at * 2 * kBlock;
  auto first = hn::Zero(di), second = hn::Zero(di);
  for (int i = 0; i < 32; i += lanes) {
    const VRow scaled = valid ? hn::Mul(values[i / lanes], hn::Set(df, inverse)) : hn::Zero(df);
    const auto q = hn::NearestInt(scaled);
    const auto high = hn::ShiftRight<8>(hn::Add(q, hn::Set(di, 128)));
    const auto low = hn::Sub(q, hn::ShiftLeft<8>(high));
    hn::StoreU(hn::DemoteTo(d8, high), d8, planes + i);
    hn::StoreU(hn::DemoteTo(d8, low), d8, planes + kBlock + i);
    (i < 16 ? first : second) = hn::Add(i < 16 ? first : second, q);
  }
  const int32_t low = hn::ReduceSum(di, first);
  const int32_t high = hn::ReduceSum(di, second);
  const float step = valid ? most / kLargest : std::numeric_limits<float>::quiet_NaN();
  out.step()[at] = step;
  int32_t* correction = out.correction() + 4 * at;
  correction[0] = -16 * (low + high);
  correction[1] = -128 * (low + high);
  correction[2] = -32 * low;
  correction[3] = -32 * high;
  out.sum()[at] = step * static_cast<float>(low + high);
}

void RoundRowOf(const float* x, int64_t row, Activations& out) {
  const DRow df;
  for (int64_t b = 0; b < out.blocks(); ++b) {
    const float* from = x + b * kBlock;
    RoundBlock([&](int i) HWY_ATTR { return hn::LoadU(df, from + i); }, b, row, out);
  }
}

// 1 / sqrt(mean(x^2) + epsilon). Pre: size is a multiple of 32.
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
  for (int64_t b = 0; b < out.blocks(); ++b) {
    RoundBlock([&](int i) HWY_ATTR { return Normed(x, norm, inverse, b * kBlock + i); }, b, row,
               out);
  }
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

void NormRopeRowOf(const Norm& norm, const float* turn, int64_t size, float* x) {
  const DRow df;
  const VRow inverse = hn::Set(df, InverseRms(x, size, norm.epsilon));
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i += static_cast<int64_t>(hn::Lanes(df))) {
    const VRow a = Normed(x, norm, inverse, i);
    const VRow b = Normed(x, norm, inverse, half + i);
    const VRow cosine = hn::LoadU(df, turn + i);
    const VRow sine = hn::LoadU(df, turn + half + i);
    hn::StoreU(hn::NegMulAdd(b, sine, hn::Mul(a, cosine)), df, x + i);
    hn::StoreU(hn::MulAdd(a, sine, hn::Mul(b, cosine)), df, x + half + i);
  }
}

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
HWY_INLINE VRow Gelu(VRow x) {
  const DRow df;
  const VRow square = hn::Mul(x, x);
  const VRow factor =
      hn::MulAdd(square, hn::Set(df, 0.044715f * 0.7978845608f), hn::Set(df, 0.7978845608f));
  // (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y)), where exp must not overflow.
  const VRow power = hn::Min(hn::Mul(hn::Mul(x, factor), hn::Set(df, -2.0f)), hn::Set(df, 80.0f));
  return hn::Div(x, hn::Add(hn::Exp(df, power), hn::Set(df, 1.0f)));
}

}  // namespace riffle::gemma3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
