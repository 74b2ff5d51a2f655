// The softmax state of a row (a query and a head), in units of log2: the largest logit so far,
// the weight (the sum of 2^(logit - largest)), and the values summed with those weights. The empty
// state is (-inf, 0, 0); merging it into another changes no bit. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_SOFTMAX_INL_H_
#undef RIFFLE_ATTENTION_SOFTMAX_INL_H_
#else
#define RIFFLE_ATTENTION_SOFTMAX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "attention/dot-inl.h"
#include "core/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Exp2;
using core::HWY_NAMESPACE::Tanh;

constexpr float kLog2E = 0x1.715476p+0f;

// States of the rows of a tile, one a lane.
struct TileState {
  float* max;         // [lanes]
  float* weight;      // [lanes]
  float* correction;  // [lanes], what a block multiplies earlier sums with
};

// The largest logit as something that can be subtracted: 0 for -inf, so that a row without a key
// gets weights 2^-inf = 0.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V ZeroIfMinusInf(DF df, V max) {
  const V minus_inf = hn::Set(df, -std::numeric_limits<float>::infinity());
  return hn::IfThenZeroElse(hn::Eq(max, minus_inf), max);
}

// scores[key][lane] = c * tanh(score * scale / c) * log2(e) for keys [begin, end) of the block.
template <class DF>
HWY_INLINE void SoftCap(DF df, int lanes, int begin, int end, float scale, float cap,
                        float* scores) {
  const auto inner = hn::Set(df, scale / cap);
  const auto outer = hn::Set(df, cap * kLog2E);
  for (int i = begin * lanes; i < end * lanes; i += static_cast<int>(hn::MaxLanes(df))) {
    const auto x = hn::Mul(hn::Load(df, scores + i), inner);
    hn::Store(hn::Mul(Tanh(df, x), outer), df, scores + i);
  }
}

// Whether SoftCap or the factor in f32 would overflow or lose digits to subnormal numbers.
inline bool NeedsWideLogits(float scale, float cap) {
  const auto ordinary = [](float x) { return x == 0 || (x >= 0x1p-100f && x <= 0x1p100f); };
  const float magnitude = std::abs(scale);
  return !ordinary(magnitude) || !ordinary(cap) || (cap > 0 && !ordinary(magnitude / cap));
}

// SoftCap (a cap of 0: none) in double, one score after the other, for scales and caps of any size.
// Finite scores give finite logits: those beyond f32 become its largest number.
inline void WideLogits(int n, float scale, float cap, float* scores) {
  constexpr double kMax = std::numeric_limits<float>::max();
  for (int i = 0; i < n; ++i) {
    const double x = static_cast<double>(scores[i]) * static_cast<double>(scale);
    const double capped = cap > 0 ? cap * std::tanh(x / static_cast<double>(cap)) : x;
    const double logit = capped * 1.4426950408889634;
    scores[i] = static_cast<float>(std::isinf(capped) ? logit : std::clamp(logit, -kMax, kMax));
  }
}

// scores[key][lane] = -inf for keys outside [first[lane], last[lane]); `key0` is the block's
// position.
template <class DF>
HWY_INLINE void MaskOutside(DF df, int lanes, int begin, int end, int key0, const int32_t* first,
                            const int32_t* last, float* scores) {
  const hn::RebindToSigned<DF> di;
  const auto minus_inf = hn::Set(df, -std::numeric_limits<float>::infinity());
  for (int lane = 0; lane < lanes; lane += static_cast<int>(hn::MaxLanes(df))) {
    const auto from = hn::Load(di, first + lane);
    const auto to = hn::Load(di, last + lane);
    for (int key = begin; key < end; ++key) {
      const auto k = hn::Set(di, key0 + key);
      const auto hidden = hn::Or(hn::Lt(k, from), hn::Ge(k, to));
      float* s = scores + key * lanes + lane;
      hn::Store(hn::IfThenElse(hn::RebindMask(df, hidden), minus_inf, hn::Load(df, s)), df, s);
    }
  }
}

// Turns scores [begin, end) of a block (multiples of 16) into weights, hands them to `sink`
// (weights-inl.h) and updates the states. Whether a key is left out or masked changes no bit: both
// add 0. Four partial weights, by key modulo 4, make the order of additions independent of `begin`.
// Returns whether any correction is not 1.
template <class DF, class Sink>
HWY_INLINE bool SoftmaxBlock(DF df, int lanes, int begin, int end, float scale, const float* scores,
                             const Sink& sink, const TileState& state) {
  using V = hn::Vec<DF>;
  const V factor = hn::Set(df, scale);
  bool changed = false;
  for (int lane = 0; lane < lanes; lane += static_cast<int>(hn::MaxLanes(df))) {
    const float* s = scores + lane;
    V max0 = hn::Load(df, s + begin * lanes);
    V max1 = max0;
    for (int key = begin; key < end; key += 2) {
      max0 = hn::Max(max0, hn::Load(df, s + key * lanes));
      max1 = hn::Max(max1, hn::Load(df, s + (key + 1) * lanes));
    }
    const V old = hn::Load(df, state.max + lane);
    // The factor is positive, so the largest score is the largest logit.
    const V max = hn::Max(old, hn::Mul(hn::Max(max0, max1), factor));
    const V shift = ZeroIfMinusInf(df, max);
    const V correction = Exp2(df, hn::Sub(old, shift));
    V sum[4] = {hn::Zero(df), hn::Zero(df), hn::Zero(df), hn::Zero(df)};
    for (int key = begin; key < end; key += 4) {
      V weight[4];
      V logit[4];
      for (int i = 0; i < 4; ++i) {
        logit[i] = hn::Mul(hn::Load(df, s + (key + i) * lanes), factor);
        weight[i] = Exp2(df, hn::Sub(logit[i], shift));
        sum[i] = hn::Add(sum[i], weight[i]);
      }
      sink.StoreTwoKeys(df, weight, logit, key, lane, lanes);
      sink.StoreTwoKeys(df, weight + 2, logit + 2, key + 2, lane, lanes);
    }
    const V added = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
    const V weight = hn::MulAdd(hn::Load(df, state.weight + lane), correction, added);
    hn::Store(max, df, state.max + lane);
    hn::Store(weight, df, state.weight + lane);
    hn::Store(correction, df, state.correction + lane);
    changed |= !hn::AllTrue(df, hn::Eq(correction, hn::Set(df, 1.0f)));
  }
  return changed;
}

#if HWY_CAP_GE512
// SoftmaxBlock for tiles of four lanes, four keys at a time: the four partial weights of a row are
// the blocks of one vector.
template <class Sink>
HWY_INLINE bool SoftmaxOf4Rows(int begin, int end, float scale, const float* scores,
                               const Sink& sink, const TileState& state) {
  const FloatTag<16> df;
  const FloatTag<4> d4;
  const auto factor = hn::Set(df, scale);
  auto largest = hn::Load(df, scores + 4 * begin);
  for (int key = begin + 4; key < end; key += 4) {
    largest = hn::Max(largest, hn::Load(df, scores + 4 * key));
  }
  const auto largest4 =
      hn::Max(hn::Max(hn::ExtractBlock<0>(largest), hn::ExtractBlock<1>(largest)),
              hn::Max(hn::ExtractBlock<2>(largest), hn::ExtractBlock<3>(largest)));
  const auto old = hn::Load(d4, state.max);
  const auto max = hn::Max(old, hn::Mul(largest4, hn::Set(d4, scale)));
  const auto shift4 = ZeroIfMinusInf(d4, max);
  const auto correction = Exp2(d4, hn::Sub(old, shift4));
  alignas(16) float shift_lanes[4];
  hn::Store(shift4, d4, shift_lanes);
  const auto shift = hn::LoadDup128(df, shift_lanes);
  auto sum = hn::Zero(df);
  for (int key = begin; key < end; key += 4) {
    const auto logit = hn::Mul(hn::Load(df, scores + 4 * key), factor);
    const auto weight = Exp2(df, hn::Sub(logit, shift));
    sum = hn::Add(sum, weight);
    sink.StoreFourKeys(weight, logit, key);
  }
  const auto added = hn::Add(hn::Add(hn::ExtractBlock<0>(sum), hn::ExtractBlock<1>(sum)),
                             hn::Add(hn::ExtractBlock<2>(sum), hn::ExtractBlock<3>(sum)));
  const auto weight = hn::MulAdd(hn::Load(d4, state.weight), correction, added);
  hn::Store(max, d4, state.max);
  hn::Store(weight, d4, state.weight);
  hn::Store(correction, d4, state.correction);
  return !hn::AllTrue(d4, hn::Eq(correction, hn::Set(d4, 1.0f)));
}
#endif

// x[0, n) *= factor; n is a multiple of 32, x aligned. A factor of 1 changes no bit.
HWY_INLINE void Scale(float factor, int n, float* x) {
  const FloatTag<16> df;
  const auto f = hn::Set(df, factor);
  for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(df))) {
    hn::Store(hn::Mul(hn::Load(df, x + i), f), df, x + i);
  }
}

// Merges the state of later keys into that of earlier ones; n columns, a multiple of 32.
HWY_INLINE void MergeState(float later_max, float later_weight, const float* later, int n,
                           float* max, float* weight, float* sums) {
  const FloatTag<16> df;
  const FloatTag<4> d4;
  const auto old = hn::Set(d4, *max);
  const auto new_max = hn::Max(old, hn::Set(d4, later_max));
  const auto shift = ZeroIfMinusInf(d4, new_max);
  const float a = hn::GetLane(Exp2(d4, hn::Sub(old, shift)));
  const float b = hn::GetLane(Exp2(d4, hn::Sub(hn::Set(d4, later_max), shift)));
  *max = hn::GetLane(new_max);
  *weight = *weight * a + later_weight * b;
  const auto va = hn::Set(df, a);
  const auto vb = hn::Set(df, b);
  for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(df))) {
    const auto scaled = hn::Mul(hn::Load(df, sums + i), va);
    hn::Store(hn::MulAdd(hn::Load(df, later + i), vb, scaled), df, sums + i);
  }
}

// The factor for the sums of a finished state, 0 if the row saw nothing, and the row's natural
// log-sum-exp, if that is asked for.
struct Finished {
  float factor;
  float lse;
};

inline Finished Finish(float max, float weight, const float* sink, bool with_lse) {
  constexpr double kLn2 = 0.69314718055994530942;
  if (std::isnan(weight)) {
    return {weight, std::numeric_limits<float>::quiet_NaN()};
  }
  const bool empty = weight == 0.0f;
  if (sink == nullptr && !with_lse) {  // a logarithm in double is 10 ns a row
    return {empty ? 0.0f : 1.0f / weight, 0.0f};
  }
  if (sink == nullptr) {
    const float lse = static_cast<float>(max * kLn2 + std::log(static_cast<double>(weight)));
    return {empty ? 0.0f : 1.0f / weight, empty ? -std::numeric_limits<float>::infinity() : lse};
  }
  if (empty || *sink == std::numeric_limits<float>::infinity()) {  // the sink has all the weight
    return {0.0f, *sink};
  }
  const double natural = max * kLn2;
  const double largest = natural > *sink ? natural : static_cast<double>(*sink);
  const double seen = std::exp(natural - largest);
  const double all = weight * seen + std::exp(*sink - largest);
  return {static_cast<float>(seen / all),
          with_lse ? static_cast<float>(largest + std::log(all)) : 0.0f};
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
