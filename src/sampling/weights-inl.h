// The weights of a row's columns and their sums. Included once per SIMD target.
#if defined(RIFFLE_SAMPLING_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SAMPLING_WEIGHTS_INL_H_
#undef RIFFLE_SAMPLING_WEIGHTS_INL_H_
#else
#define RIFFLE_SAMPLING_WEIGHTS_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "core/exp-inl.h"
#include "core/load-inl.h"
#include "sampling/sampling_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Exp2;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

using WeightTag = hn::CappedTag<float, 16>;
using WeightVec = hn::Vec<WeightTag>;

// Loads elements of one dtype as f32.
template <DType kDType>
struct Elements {
  static constexpr size_t kBytes = SizeOf(kDType);

  static HWY_INLINE WeightVec Load(const uint8_t* p) {
    const WeightTag d;
    if constexpr (kDType == DType::kF32) {
      return LoadAny(d, p);
    } else if constexpr (kDType == DType::kBF16) {
      const hn::Rebind<hwy::bfloat16_t, WeightTag> dh;
      return hn::PromoteTo(d, LoadAny(dh, p));
    } else {
      const hn::Rebind<hwy::float16_t, WeightTag> dh;
      return FromF16(d, LoadAny(dh, p));
    }
  }

  // Loads `count` elements, followed by -inf, whose weight is 0. Reads nothing else.
  static HWY_INLINE WeightVec LoadFirst(const uint8_t* p, size_t count) {
    const WeightTag d;
    HWY_ALIGN uint8_t part[16 * kBytes] = {};
    std::memcpy(part, p, count * kBytes);
    return hn::IfThenElse(hn::FirstN(d, count), Load(part),
                          hn::Set(d, -std::numeric_limits<float>::infinity()));
  }
};

// Whether the maximum needs no special case: x - max is then 0, which gives the weight 1.
inline bool IsPlain(const WeightRow& row) {
  return row.unit == 1 && std::isfinite(row.max) && std::isfinite(row.scale);
}

// Reads a row's weights, one vector at a time. kPlain: IsPlain(row), which gives the same bits.
template <DType kDType, bool kCut, bool kPlain = false>
struct WeightReader {
  using E = Elements<kDType>;
  const uint8_t* x;
  WeightVec max, unit, max_units, scale, above, min_weight;

  WeightReader(const WeightRow& row, const Cut& cut)
      : x(row.x),
        max(hn::Set(WeightTag(), row.max)),
        unit(hn::Set(WeightTag(), row.unit)),
        max_units(hn::Set(WeightTag(), row.max * row.unit)),
        scale(hn::Set(WeightTag(), row.scale)),
        above(hn::Set(WeightTag(), cut.above)),
        min_weight(hn::Set(WeightTag(), cut.min_weight)) {}

  HWY_INLINE WeightVec Kept(WeightVec value) const {
    const WeightTag d;
    if constexpr (kPlain && !kCut) {
      return Exp2(d, hn::Mul(hn::Sub(value, max), scale));
    }
    // With a unit of 1 this has the bits of value - max.
    const WeightVec below = hn::MulSub(value, unit, max_units);
    const WeightVec weight =
        hn::IfThenElse(hn::Eq(value, max), hn::Set(d, 1.0f), Exp2(d, hn::Mul(below, scale)));
    if constexpr (kCut) {
      return hn::IfThenElseZero(hn::And(hn::Gt(value, above), hn::Ge(weight, min_weight)), weight);
    } else {
      return weight;
    }
  }
  HWY_INLINE WeightVec At(int64_t i) const {
    return Kept(E::Load(x + static_cast<size_t>(i) * E::kBytes));
  }
  HWY_INLINE WeightVec FirstAt(int64_t i, int64_t count) const {
    return Kept(E::LoadFirst(x + static_cast<size_t>(i) * E::kBytes, static_cast<size_t>(count)));
  }
};

// A sum of f32 vectors in double. Eight vectors at a time are first added in pairs as f32: that
// takes two conversions instead of sixteen, and rounds each element's sum three times in f32.
struct WideSum {
  using D = hn::Repartition<double, WeightTag>;
  hn::Vec<D> lower, upper;

  // Explicit, because an implicit constructor would not be compiled for the target.
  HWY_INLINE WideSum() : lower(hn::Zero(D())), upper(hn::Zero(D())) {}

  HWY_INLINE void Add(WeightVec v) {
    lower = hn::Add(lower, hn::PromoteLowerTo(D(), v));
    upper = hn::Add(upper, hn::PromoteUpperTo(D(), v));
  }
  HWY_INLINE double Sum() const { return hn::ReduceSum(D(), hn::Add(lower, upper)); }
};

template <DType kDType, bool kCut, bool kPlain>
double SumOf(const WeightRow& row, const Cut& cut, int64_t begin, int64_t end) {
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightReader<kDType, kCut, kPlain> read(row, cut);
  WideSum sum;
  int64_t i = begin;
  for (; i + 8 * kLanes <= end; i += 8 * kLanes) {
    const auto pair = [&](int64_t j) HWY_ATTR {
      return hn::Add(read.At(i + j * kLanes), read.At(i + (j + 1) * kLanes));
    };
    const WeightVec first = hn::Add(pair(0), pair(2));
    sum.Add(hn::Add(first, hn::Add(pair(4), pair(6))));
  }
  for (; i + kLanes <= end; i += kLanes) {
    sum.Add(read.At(i));
  }
  if (i < end) {
    sum.Add(read.FirstAt(i, end - i));
  }
  return sum.Sum();
}

template <DType kDType, bool kCut>
void StoreWeights(const WeightRow& row, const Cut& cut, int64_t begin, int64_t end, float* out) {
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightReader<kDType, kCut> read(row, cut);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes, out += kLanes) {
    hn::StoreU(read.At(i), d, out);
  }
  if (i < end) {
    hn::StoreU(read.FirstAt(i, end - i), d, out);
  }
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
