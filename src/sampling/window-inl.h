// One pass over a row that sums what is above a window of values and keeps what is in it. Included
// once per SIMD target.
#if defined(RIFFLE_SAMPLING_WINDOW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SAMPLING_WINDOW_INL_H_
#undef RIFFLE_SAMPLING_WINDOW_INL_H_
#else
#define RIFFLE_SAMPLING_WINDOW_INL_H_
#endif

#include <algorithm>
#include <limits>

#include "sampling/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums weights as SumOf does: eight vectors in pairs in f32, the results in double.
HWY_INLINE WeightVec AddEight(const WeightVec* v) {
  const WeightVec first = hn::Add(hn::Add(v[0], v[1]), hn::Add(v[2], v[3]));
  return hn::Add(first, hn::Add(hn::Add(v[4], v[5]), hn::Add(v[6], v[7])));
}

template <DType kDType>
WindowSums WindowOf(const WeightRow& row, const WindowEstimate& window, int64_t begin, int64_t end,
                    float* values) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightReader<kDType, false, true> read(row, {});
  const WeightVec low = hn::Set(d, window.low);
  const WeightVec high = hn::Set(d, window.high);
  WeightVec max = hn::Set(d, -std::numeric_limits<float>::infinity());
  float* out = values;
  const auto take = [&](WeightVec value, WeightVec& weight, WeightVec& above) HWY_ATTR {
    max = hn::Max(max, value);
    weight = read.Kept(value);
    const auto over = hn::Gt(value, high);
    above = hn::IfThenElseZero(over, weight);
    out += hn::CompressStore(value, hn::AndNot(over, hn::Ge(value, low)), d, out);
  };
  const auto load = [&](int64_t i)
                        HWY_ATTR { return E::Load(row.x + static_cast<size_t>(i) * E::kBytes); };
  WideSum all_sum, above_sum;
  WeightVec weight[8], above[8];
  int64_t i = begin;
  for (; i + 8 * kLanes <= end; i += 8 * kLanes) {
    for (int64_t j = 0; j < 8; ++j) {
      take(load(i + j * kLanes), weight[j], above[j]);
    }
    all_sum.Add(AddEight(weight));
    above_sum.Add(AddEight(above));
  }
  for (; i < end; i += kLanes) {
    const auto count = static_cast<size_t>(std::min(kLanes, end - i));
    take(E::LoadFirst(row.x + static_cast<size_t>(i) * E::kBytes, count), weight[0], above[0]);
    all_sum.Add(weight[0]);
    above_sum.Add(above[0]);
  }
  return {all_sum.Sum(), above_sum.Sum(), out - values, hn::ReduceMax(d, max)};
}

// Stores columns that reach a value, with their numbers.
class FewColumns {
 public:
  HWY_INLINE FewColumns(float low, float* values, int32_t* columns)
      : low_(hn::Set(WeightTag(), low)), values_(values), columns_(columns) {}

  // Returns the lanes that are stored.
  HWY_INLINE hn::Mask<WeightTag> Reach(WeightVec value) const { return hn::Ge(value, low_); }
  HWY_INLINE void Store(WeightVec value, hn::Mask<WeightTag> reach, int64_t column) {
    const WeightTag d;
    const hn::RebindToSigned<WeightTag> di;
    hn::CompressStore(hn::Iota(di, static_cast<int32_t>(column)), hn::RebindMask(di, reach), di,
                      columns_ + count_);
    count_ += static_cast<int64_t>(hn::CompressStore(value, reach, d, values_ + count_));
  }
  int64_t count() const { return count_; }

 private:
  const WeightVec low_;
  float* const values_;
  int32_t* const columns_;
  int64_t count_ = 0;
};

// Keeping a column is rare enough for a branch: without one, each vector would be compressed twice.
template <DType kDType>
WindowSums FewOf(const WeightRow& row, float low, int64_t begin, int64_t end, float* values,
                 int32_t* columns) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightReader<kDType, false, true> read(row, {});
  FewColumns few(low, values, columns);
  WeightVec max = hn::Set(d, -std::numeric_limits<float>::infinity());
  const auto take = [&](WeightVec value, int64_t column) HWY_ATTR {
    const WeightVec weight = read.Kept(value);
    const auto reach = few.Reach(value);
    if (HWY_UNLIKELY(!hn::AllFalse(d, reach))) {
      few.Store(value, reach, column);
      max = hn::Max(max, value);
      return hn::IfThenZeroElse(reach, weight);
    }
    return weight;
  };
  const auto load = [&](int64_t i)
                        HWY_ATTR { return E::Load(row.x + static_cast<size_t>(i) * E::kBytes); };
  WideSum sum;
  WeightVec weight[8];
  int64_t i = begin;
  for (; i + 8 * kLanes <= end; i += 8 * kLanes) {
    for (int64_t j = 0; j < 8; ++j) {
      weight[j] = take(load(i + j * kLanes), i + j * kLanes);
    }
    sum.Add(AddEight(weight));
  }
  for (; i < end; i += kLanes) {
    const auto rest = static_cast<size_t>(std::min(kLanes, end - i));
    sum.Add(take(E::LoadFirst(row.x + static_cast<size_t>(i) * E::kBytes, rest), i));
  }
  return {sum.Sum(), 0, few.count(), hn::ReduceMax(d, max)};
}

template <DType kDType>
int64_t FindFewOf(const WeightRow& row, float low, int64_t begin, int64_t end, float* values,
                  int32_t* columns) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  FewColumns few(low, values, columns);
  for (int64_t i = begin; i < end; i += kLanes) {
    const uint8_t* const from = row.x + static_cast<size_t>(i) * E::kBytes;
    const WeightVec value =
        i + kLanes <= end ? E::Load(from) : E::LoadFirst(from, static_cast<size_t>(end - i));
    const auto reach = few.Reach(value);
    if (HWY_UNLIKELY(!hn::AllFalse(d, reach))) {
      few.Store(value, reach, i);
    }
  }
  return few.count();
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
