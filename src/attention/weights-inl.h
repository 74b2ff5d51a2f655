// Turns the weights of a block into operands of the value product. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_WEIGHTS_INL_H_
#undef RIFFLE_ATTENTION_WEIGHTS_INL_H_
#else
#define RIFFLE_ATTENTION_WEIGHTS_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>
#include <limits>

#include "attention/dot-inl.h"
#include "core/bf16_dot.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Stores two neighbouring keys' probabilities as operands of the value product.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE void StoreWeights(F32Math, DF df, V even, V odd, int key, int lanes, float* p) {
  hn::Store(even, df, p + key * lanes);
  hn::Store(odd, df, p + (key + 1) * lanes);
}

#if HWY_CAP_GE512
// In tiles of four lanes a vector holds four keys, four lanes each.
using FourKeys = FloatTag<16>;

// Repeats each of four numbers in the four lanes of its key.
HWY_INLINE hn::Vec<FourKeys> RepeatEach4(const float* x) {
  const FourKeys df;
  alignas(64) static constexpr int32_t kBlocks[16] = {0,  0,  0,  0,  5,  5,  5,  5,
                                                      10, 10, 10, 10, 15, 15, 15, 15};
  return hn::TableLookupLanes(hn::LoadDup128(df, x), hn::SetTableIndices(df, kBlocks));
}

HWY_INLINE void StoreWeightsOf4(F32Math, hn::Vec<FourKeys> weights, int key, float* p) {
  hn::Store(weights, FourKeys(), p + 4 * key);
}
#endif

#if RIFFLE_BF16_DOT
// Indices that take lane i of one vector of kN lanes and lane i of the next to places 2 i, 2 i + 1.
template <size_t kN>
constexpr std::array<uint16_t, 2 * kN> PairIndices() {
  std::array<uint16_t, 2 * kN> pairs{};
  for (size_t i = 0; i < kN; ++i) {
    pairs[2 * i] = static_cast<uint16_t>(i);
    pairs[2 * i + 1] = static_cast<uint16_t>(kN + i);
  }
  return pairs;
}

template <class DF, class V = hn::Vec<DF>>
HWY_INLINE void StoreWeights(BF16Math, DF, V even, V odd, int key, int lanes, uint32_t* p) {
  const hn::RebindToUnsigned<DF> du;
  const hn::Repartition<hwy::bfloat16_t, DF> dh;
  const hn::Repartition<uint16_t, DF> du16;
  // [even rows][odd rows] -> [rows][even, odd]
  alignas(64) static constexpr auto kPairs = PairIndices<hn::MaxLanes(DF())>();
  const auto halves = hn::BitCast(du16, hn::OrderedDemote2To(dh, even, odd));
  const auto pairs = hn::TableLookupLanes(halves, hn::SetTableIndices(du16, kPairs.data()));
  hn::Store(hn::BitCast(du, pairs), du, p + key / 2 * lanes);
}

#if HWY_CAP_GE512
HWY_INLINE void StoreWeightsOf4(BF16Math, hn::Vec<FourKeys> weights, int key, uint32_t* p) {
  const hn::Rebind<hwy::bfloat16_t, FourKeys> dh;
  const hn::Rebind<uint16_t, FourKeys> du16;
  const hn::Repartition<uint32_t, decltype(du16)> du;
  // [4 keys][4 rows] -> [2 pairs][4 rows][2 keys]
  alignas(32) static constexpr uint16_t kPairs[16] = {0, 4,  1, 5,  2,  6,  3,  7,
                                                      8, 12, 9, 13, 10, 14, 11, 15};
  const auto halves = hn::BitCast(du16, hn::DemoteTo(dh, weights));
  const auto pairs = hn::TableLookupLanes(halves, hn::SetTableIndices(du16, kPairs));
  hn::StoreU(hn::BitCast(du, pairs), du, p + 2 * key);
}

// Two such vectors, of eight keys from `key` on, at once.
HWY_INLINE void StoreWeightsOf8(BF16Math, hn::Vec<FourKeys> low, hn::Vec<FourKeys> high, int key,
                                uint32_t* p) {
  const hn::Repartition<hwy::bfloat16_t, FourKeys> dh;
  const hn::Repartition<uint16_t, FourKeys> du16;
  const hn::RebindToUnsigned<FourKeys> du;
  // [8 keys][4 rows] -> [4 pairs][4 rows][2 keys]
  alignas(64) static constexpr uint16_t kPairs[32] = {0,  4,  1,  5,  2,  6,  3,  7,  8,  12, 9,
                                                      13, 10, 14, 11, 15, 16, 20, 17, 21, 18, 22,
                                                      19, 23, 24, 28, 25, 29, 26, 30, 27, 31};
  const auto halves = hn::BitCast(du16, hn::OrderedDemote2To(dh, low, high));
  const auto pairs = hn::TableLookupLanes(halves, hn::SetTableIndices(du16, kPairs));
  hn::Store(hn::BitCast(du, pairs), du, p + 2 * key);
}
#endif  // vectors of 512 bits
#endif  // dot products of bf16

// A weight times the scale of its key's value. A hidden key's scale may be NaN or infinite; its
// weight stays 0. `logit` (or the masked score) is -inf for it.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V ScaledWeight(DF df, V weight, V logit, V scale) {
  const V minus_inf = hn::Set(df, -std::numeric_limits<float>::infinity());
  return hn::IfThenZeroElse(hn::Eq(logit, minus_inf), hn::Mul(weight, scale));
}

// The softmax hands weights to one of these, two keys at a time, or four keys of four lanes.

// Stores weights as operands that multiply values.
template <class Math>
struct PlainWeights {
  typename Math::Operand* p;

  template <class DF, class V = hn::Vec<DF>>
  HWY_INLINE void StoreTwoKeys(DF df, const V* weight, const V*, int key, int lane,
                               int lanes) const {
    StoreWeights(Math(), df, weight[0], weight[1], key, lanes, p + lane);
  }
#if HWY_CAP_GE512
  HWY_INLINE void StoreFourKeys(hn::Vec<FourKeys> weights, hn::Vec<FourKeys>, int key) const {
    StoreWeightsOf4(Math(), weights, key, p);
  }
#endif
};

// Stores weights times one scale per key as operands.
template <class Math>
struct ScaledWeights {
  typename Math::Operand* p;
  const float* scales;

  template <class DF, class V = hn::Vec<DF>>
  HWY_INLINE void StoreTwoKeys(DF df, const V* weight, const V* logit, int key, int lane,
                               int lanes) const {
    const V even = ScaledWeight(df, weight[0], logit[0], hn::Set(df, scales[key]));
    const V odd = ScaledWeight(df, weight[1], logit[1], hn::Set(df, scales[key + 1]));
    StoreWeights(Math(), df, even, odd, key, lanes, p + lane);
  }
#if HWY_CAP_GE512
  HWY_INLINE void StoreFourKeys(hn::Vec<FourKeys> weights, hn::Vec<FourKeys> logits,
                                int key) const {
    const auto scaled = ScaledWeight(FourKeys(), weights, logits, RepeatEach4(scales + key));
    StoreWeightsOf4(Math(), scaled, key, p);
  }
#endif
};

// Keeps weights in f32, for several scales of each key (ScaleKeptWeights).
struct KeptWeights {
  float* weights;  // [kBlock][lanes]

  template <class DF, class V = hn::Vec<DF>>
  HWY_INLINE void StoreTwoKeys(DF df, const V* weight, const V*, int key, int lane,
                               int lanes) const {
    StoreWeights(F32Math(), df, weight[0], weight[1], key, lanes, weights + lane);
  }
#if HWY_CAP_GE512
  HWY_INLINE void StoreFourKeys(hn::Vec<FourKeys> w, hn::Vec<FourKeys>, int key) const {
    hn::Store(w, FourKeys(), weights + 4 * key);
  }
#endif
};

#if RIFFLE_BF16_DOT && HWY_CAP_GE512
// ScaleKeptWeights for four lanes: eight keys of all groups at a time.
HWY_INLINE void ScaleKeptWeightsOf4(int begin, int end, const float* weights, const float* scores,
                                    const float* scales, int groups, uint32_t* HWY_RESTRICT p) {
  const FourKeys d;
  const auto minus_inf = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int key = begin; key < end; key += 8) {
    const auto low = hn::Load(d, weights + 4 * key);
    const auto high = hn::Load(d, weights + 4 * key + 16);
    const auto low_hidden = hn::Eq(hn::Load(d, scores + 4 * key), minus_inf);
    const auto high_hidden = hn::Eq(hn::Load(d, scores + 4 * key + 16), minus_inf);
    for (int g = 0; g < groups; ++g) {
      const float* of_keys = scales + g * kBlock + key;
      StoreWeightsOf8(BF16Math(),
                      hn::IfThenZeroElse(low_hidden, hn::Mul(low, RepeatEach4(of_keys))),
                      hn::IfThenZeroElse(high_hidden, hn::Mul(high, RepeatEach4(of_keys + 4))), key,
                      p + g * (kBlock / 2 * 4));
    }
  }
}
#endif

// p[g] = the kept weights of keys [begin, end), multiples of 16, times scales[g][key], for `groups`
// groups of columns.
//   scores  [kBlock][lanes], masked; scales [groups][kBlock]
//   p       [groups][kBlock / kPerOperand][lanes]
template <class Math, class DF>
HWY_INLINE void ScaleKeptWeights(DF df, int lanes, int begin, int end, const float* weights,
                                 const float* scores, const float* scales, int groups,
                                 typename Math::Operand* p) {
#if RIFFLE_BF16_DOT && HWY_CAP_GE512
  if constexpr (hn::MaxLanes(DF()) == 4 && Math::kPerOperand == 2) {
    ScaleKeptWeightsOf4(begin, end, weights, scores, scales, groups, p);
    return;
  }
#endif
  for (int g = 0; g < groups; ++g, scales += kBlock, p += kBlock / Math::kPerOperand * lanes) {
    const ScaledWeights<Math> sink{p, scales};
    for (int lane = 0; lane < lanes; lane += static_cast<int>(hn::MaxLanes(df))) {
      for (int key = begin; key < end; key += 2) {
        const int at = key * lanes + lane;
        const hn::Vec<DF> weight[] = {hn::Load(df, weights + at),
                                      hn::Load(df, weights + at + lanes)};
        const hn::Vec<DF> score[] = {hn::Load(df, scores + at), hn::Load(df, scores + at + lanes)};
        sink.StoreTwoKeys(df, weight, score, key, lane, lanes);
      }
    }
  }
}

// scores[key][lane] = group[key][lane] * scales[key], plus what it was unless `first`, for keys
// [begin, end) of the block, multiples of 4.
template <class DF>
HWY_INLINE void AddScaledScores(DF df, int lanes, int begin, int end, const float* scales,
                                bool first, const float* group, float* scores) {
  const auto add = [&](auto d, int at, auto scale) HWY_ATTR {
    const auto x = hn::Load(d, group + at);
    hn::Store(first ? hn::Mul(x, scale) : hn::MulAdd(x, scale, hn::Load(d, scores + at)), d,
              scores + at);
  };
#if HWY_CAP_GE512
  if constexpr (hn::MaxLanes(DF()) == 4) {
    for (int key = begin; key < end; key += 4) {
      add(FourKeys(), 4 * key, RepeatEach4(scales + key));
    }
    return;
  }
#endif
  for (int key = begin; key < end; ++key) {
    const auto scale = hn::Set(df, scales[key]);
    for (int lane = 0; lane < lanes; lane += static_cast<int>(hn::MaxLanes(df))) {
      add(df, key * lanes + lane, scale);
    }
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
