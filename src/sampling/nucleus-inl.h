// Finds the smallest prefix of a row, in the order of its values, that reaches a mass. It is a
// quickselect by mass, so nothing is sorted. Included once per SIMD target.
#if defined(RIFFLE_SAMPLING_NUCLEUS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SAMPLING_NUCLEUS_INL_H_
#undef RIFFLE_SAMPLING_NUCLEUS_INL_H_
#else
#define RIFFLE_SAMPLING_NUCLEUS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/order.h"
#include "sampling/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements that may be on either side of the threshold. Both arrays have room for one more vector.
struct Undecided {
  float* x;
  float* weight;
  int64_t count = 0;

  struct Range {
    float min, max;
  };

  HWY_INLINE void Append(WeightVec value, WeightVec mass, hn::Mask<WeightTag> keep) {
    const WeightTag d;
    hn::CompressStore(mass, keep, d, weight + count);
    count += static_cast<int64_t>(hn::CompressStore(value, keep, d, x + count));
  }

  // Calls f(value, weight, mask of the lanes that are elements) for all, one vector at a time.
  template <typename F>
  HWY_INLINE void Visit(const F& f) const {
    const WeightTag d;
    constexpr int64_t kLanes = hn::MaxLanes(d);
    for (int64_t i = 0; i < count; i += kLanes) {
      const auto valid = hn::FirstN(d, static_cast<size_t>(std::min(kLanes, count - i)));
      f(hn::LoadU(d, x + i), hn::LoadU(d, weight + i), valid);
    }
  }

  Range Extremes() const {
    HWY_DASSERT(count > 0);
    const WeightTag d;
    const WeightVec infinity = hn::Set(d, std::numeric_limits<float>::infinity());
    WeightVec min = infinity;
    WeightVec max = hn::Neg(infinity);
    Visit([&](WeightVec value, WeightVec, hn::Mask<WeightTag> valid) HWY_ATTR {
      min = hn::Min(min, hn::IfThenElse(valid, value, infinity));
      max = hn::Max(max, hn::IfThenElse(valid, value, hn::Neg(infinity)));
    });
    return {hn::ReduceMin(d, min), hn::ReduceMax(d, max)};
  }

  double MassAbove(float pivot) const {
    const WeightTag d;
    const WeightVec limit = hn::Set(d, pivot);
    WideSum sum;
    Visit([&](WeightVec value, WeightVec mass, hn::Mask<WeightTag> valid) HWY_ATTR {
      sum.Add(hn::IfThenElseZero(hn::And(valid, hn::Gt(value, limit)), mass));
    });
    return sum.Sum();
  }

  int64_t CountAbove(float pivot) const {
    const WeightTag d;
    const WeightVec limit = hn::Set(d, pivot);
    size_t above = 0;
    Visit([&](WeightVec value, WeightVec, hn::Mask<WeightTag> valid)
              HWY_ATTR { above += hn::CountTrue(d, hn::And(valid, hn::Gt(value, limit))); });
    return static_cast<int64_t>(above);
  }

  // Keeps the elements above the pivot, or the others. Works in place: writes never overtake reads.
  void Keep(float pivot, bool above) {
    const WeightTag d;
    const WeightVec limit = hn::Set(d, pivot);
    Undecided kept{x, weight};
    Visit([&](WeightVec value, WeightVec mass, hn::Mask<WeightTag> valid) HWY_ATTR {
      const auto reach = hn::Gt(value, limit);
      kept.Append(value, mass, above ? hn::And(valid, reach) : hn::AndNot(reach, valid));
    });
    count = kept.count;
  }
};

// A value in [min, max): the middle of the values, which halves a bell-shaped row, or
// (of_bits) the middle of the floats between them, with which the search ends after at most 32
// steps.
inline float Pivot(Undecided::Range range, bool of_bits) {
  float middle = range.min / 2 + range.max / 2;
  if (of_bits || !(middle >= range.min && middle < range.max)) {
    const int64_t low = core::Key(std::bit_cast<int32_t>(range.min), core::kF32Format);
    const int64_t high = core::Key(std::bit_cast<int32_t>(range.max), core::kF32Format);
    middle = core::KeyToFloat(low + (high - low) / 2, DType::kF32);
  }
  return middle;
}

// The nucleus that reaches `mass`, where columns above all elements already have the mass `above`.
// Leaves only the elements equal to the threshold in `undecided`. Pre: there are elements.
inline Nucleus SelectByMass(Undecided& undecided, double above, double mass) {
  for (bool of_bits = false;;) {
    const int64_t before = undecided.count;
    const Undecided::Range range = undecided.Extremes();
    if (!(range.min < range.max)) {
      break;
    }
    const float pivot = Pivot(range, of_bits);
    const double upper = undecided.MassAbove(pivot);
    const bool reached = above + upper >= mass;
    undecided.Keep(pivot, reached);
    above += reached ? 0 : upper;
    of_bits = undecided.count > before / 4 * 3;
  }
  const float weight = undecided.weight[0];
  const double wanted = std::ceil((mass - above) / static_cast<double>(weight));
  const auto equal = static_cast<double>(undecided.count);
  const double ties = wanted > 1 ? std::min(wanted, equal) : 1;  // if `wanted` is NaN: 1
  return {undecided.x[0], weight, static_cast<int64_t>(ties)};
}

template <DType kDType>
Nucleus NucleusOf(const WeightRow& row, int64_t n, double above, double mass, uint8_t* scratch) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  float* x = reinterpret_cast<float*>(scratch);
  Undecided undecided{x, x + NucleusScratch(n) / (2 * sizeof(float))};
  const WeightReader<kDType, false> read(row, {});
  for (int64_t i = 0; i < n; i += kLanes) {
    const uint8_t* from = row.x + static_cast<size_t>(i) * E::kBytes;
    const WeightVec value =
        i + kLanes <= n ? E::Load(from) : E::LoadFirst(from, static_cast<size_t>(n - i));
    const WeightVec weight = read.Kept(value);
    undecided.Append(value, weight, hn::Gt(weight, hn::Zero(d)));
  }
  if (undecided.count == 0) {  // another thread wrote to the row after its maximum was found
    return {row.max, 1.0f, 1};
  }
  return SelectByMass(undecided, above, mass);
}

template <DType kDType>
int64_t EqualAt(const WeightRow& row, int64_t n, float value, int64_t place) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightVec wanted = hn::Set(d, value);
  for (int64_t i = 0; i < n; i += kLanes) {
    const uint8_t* from = row.x + static_cast<size_t>(i) * E::kBytes;
    const WeightVec x =
        i + kLanes <= n ? E::Load(from) : E::LoadFirst(from, static_cast<size_t>(n - i));
    const auto equal = hn::Eq(x, wanted);
    const auto count = static_cast<int64_t>(hn::CountTrue(d, equal));
    if (place >= count) {
      place -= count;
      continue;
    }
    HWY_ALIGN float ones[hn::MaxLanes(d)];
    hn::Store(hn::IfThenElseZero(equal, hn::Set(d, 1.0f)), d, ones);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if (ones[lane] != 0 && place-- == 0) {
        return i + lane;
      }
    }
  }
  return n - 1;
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
