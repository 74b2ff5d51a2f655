// Writes -inf to the columns of a row that filters drop. Included once per SIMD target.
#if defined(RIFFLE_SAMPLING_MASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SAMPLING_MASK_INL_H_
#undef RIFFLE_SAMPLING_MASK_INL_H_
#else
#define RIFFLE_SAMPLING_MASK_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "sampling/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sets the lanes of `equal` after the first `ties` to false.
inline hn::Mask<WeightTag> FirstOf(hn::Mask<WeightTag> equal, int64_t ties) {
  const WeightTag d;
  HWY_ALIGN float ones[hn::MaxLanes(d)];
  hn::Store(hn::IfThenElseZero(equal, hn::Set(d, 1.0f)), d, ones);
  for (float& one : ones) {
    ties -= one != 0 ? 1 : 0;
    one = ties >= 0 ? one : 0;
  }
  return hn::Ne(hn::Load(d, ones), hn::Zero(d));
}

template <bool kWeighed>
void MaskRow(const WeightRow& row, int64_t n, const Cut& cut, const Nucleus& nucleus, float* x) {
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightReader<DType::kF32, false> read(row, {});
  const WeightVec above = hn::Set(d, cut.above);
  const WeightVec min_weight = hn::Set(d, cut.min_weight);
  const WeightVec threshold = hn::Set(d, nucleus.threshold);
  const WeightVec minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  int64_t ties = nucleus.ties;  // still to be kept
  const auto dropped = [&](WeightVec value) HWY_ATTR {
    auto kept = hn::Gt(value, above);
    if constexpr (kWeighed) {
      kept = hn::And(kept, hn::Ge(read.Kept(value), min_weight));
    }
    if (ties > 0) {
      const auto equal = hn::Eq(value, threshold);
      const auto count = static_cast<int64_t>(hn::CountTrue(d, equal));
      kept = hn::Or(kept, count <= ties ? equal : FirstOf(equal, ties));
      ties -= std::min(count, ties);
    }
    return hn::Not(kept);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::BlendedStore(minus_infinity, dropped(hn::LoadU(d, x + i)), d, x + i);
  }
  if (i < n) {
    const auto count = static_cast<size_t>(n - i);
    const auto* from = reinterpret_cast<const uint8_t*>(x + i);
    const WeightVec value = Elements<DType::kF32>::LoadFirst(from, count);
    HWY_ALIGN float part[hn::MaxLanes(d)];
    hn::Store(hn::IfThenElse(dropped(value), minus_infinity, value), d, part);
    std::memcpy(reinterpret_cast<uint8_t*>(x + i), part, count * sizeof(float));
  }
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
