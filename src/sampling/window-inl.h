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

// Weights of a vector, and those of columns above the window.
struct WindowWeights {
  WeightVec all, above;
};

HWY_INLINE WeightVec Plus(WeightVec a, WeightVec b) { return hn::Add(a, b); }
HWY_INLINE WindowWeights Plus(const WindowWeights& a, const WindowWeights& b) {
  return {hn::Add(a.all, b.all), hn::Add(a.above, b.above)};
}

// f(0) to f(7), called in this order and summed in pairs. Written out, because arrays of vectors in
// a loop go through memory: 34 instead of 28 us for the sum of a row of 262144, and 59 instead of
// 54 with a window.
template <typename F>
HWY_INLINE auto SumOfEight(const F& f) {
  const auto pair = [&](int64_t j) HWY_ATTR {
    const auto even = f(j);
    const auto odd = f(j + 1);
    return Plus(even, odd);
  };
  const auto first = pair(0);
  const auto second = pair(2);
  const auto half = Plus(first, second);
  const auto third = pair(4);
  const auto fourth = pair(6);
  return Plus(half, Plus(third, fourth));
}

// Calls take(value, column) with each vector of columns [begin, end), the last one padded by
// LoadFirst, and add() with the sum of eight of its results at a time, at the end with single ones.
template <DType kDType, typename Take, typename Add>
HWY_INLINE void SumVectors(const WeightRow& row, int64_t begin, int64_t end, const Take& take,
                           const Add& add) {
  using E = Elements<kDType>;
  constexpr int64_t kLanes = hn::MaxLanes(WeightTag());
  int64_t i = begin;
  for (; i + 8 * kLanes <= end; i += 8 * kLanes) {
    add(SumOfEight([&](int64_t j) HWY_ATTR {
      const int64_t column = i + j * kLanes;
      return take(E::Load(row.x + static_cast<size_t>(column) * E::kBytes), column);
    }));
  }
  for (; i < end; i += kLanes) {
    const auto count = static_cast<size_t>(std::min(kLanes, end - i));
    add(take(E::LoadFirst(row.x + static_cast<size_t>(i) * E::kBytes, count), i));
  }
}

template <DType kDType>
WindowSums WindowOf(const WeightRow& row, const WindowEstimate& window, int64_t begin, int64_t end,
                    float* values) {
  const WeightTag d;
  const WeightReader<kDType, false, true> read(row, {});
  const WeightVec low = hn::Set(d, window.low);
  const WeightVec high = hn::Set(d, window.high);
  WeightVec max = hn::Set(d, -std::numeric_limits<float>::infinity());
  float* out = values;
  const auto take = [&](WeightVec value, int64_t) HWY_ATTR {
    max = hn::Max(max, value);
    const WeightVec weight = read.Kept(value);
    const auto over = hn::Gt(value, high);
    out += hn::CompressStore(value, hn::AndNot(over, hn::Ge(value, low)), d, out);
    return WindowWeights{weight, hn::IfThenElseZero(over, weight)};
  };
  WideSum all_sum, above_sum;
  const auto add = [&](const WindowWeights& weights) HWY_ATTR {
    all_sum.Add(weights.all);
    above_sum.Add(weights.above);
  };
  SumVectors<kDType>(row, begin, end, take, add);
  return {all_sum.Sum(), above_sum.Sum(), out - values, hn::ReduceMax(d, max)};
}

// Stores the columns that reach a value, with their numbers.
class FewColumns {
 public:
  HWY_INLINE FewColumns(float low, float* values, int32_t* columns)
      : low_(hn::Set(WeightTag(), low)),
        max_(hn::Set(WeightTag(), -std::numeric_limits<float>::infinity())),
        values_(values),
        columns_(columns) {}

  // Stores the elements of `value`, a vector that begins at `column`, that reach the bound, and
  // returns `weight` with zeros in their lanes. They are rare enough for a branch: without one,
  // each vector would be compressed twice.
  HWY_INLINE WeightVec Take(WeightVec value, int64_t column, WeightVec weight) {
    const WeightTag d;
    const hn::RebindToSigned<WeightTag> di;
    const auto reach = hn::Ge(value, low_);
    if (HWY_LIKELY(hn::AllFalse(d, reach))) {
      return weight;
    }
    hn::CompressStore(hn::Iota(di, static_cast<int32_t>(column)), hn::RebindMask(di, reach), di,
                      columns_ + count_);
    count_ += static_cast<int64_t>(hn::CompressStore(value, reach, d, values_ + count_));
    max_ = hn::Max(max_, value);
    return hn::IfThenZeroElse(reach, weight);
  }
  int64_t count() const { return count_; }
  // The greatest value stored; -infinity if there is none.
  HWY_INLINE float max() const { return hn::ReduceMax(WeightTag(), max_); }

 private:
  const WeightVec low_;
  WeightVec max_;
  float* const values_;
  int32_t* const columns_;
  int64_t count_ = 0;
};

template <DType kDType>
WindowSums SumAndKeepTopOf(const WeightRow& row, float low, int64_t begin, int64_t end,
                           float* values, int32_t* columns) {
  const WeightReader<kDType, false, true> read(row, {});
  FewColumns few(low, values, columns);
  WideSum sum;
  SumVectors<kDType>(
      row, begin, end,
      [&](WeightVec value, int64_t column)
          HWY_ATTR { return few.Take(value, column, read.Kept(value)); },
      [&](WeightVec weights) HWY_ATTR { sum.Add(weights); });
  return {sum.Sum(), 0, few.count(), few.max()};
}

template <DType kDType>
int64_t KeepTopOf(const WeightRow& row, float low, int64_t begin, int64_t end, float* values,
                  int32_t* columns) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  FewColumns few(low, values, columns);
  for (int64_t i = begin; i < end; i += kLanes) {
    const uint8_t* const from = row.x + static_cast<size_t>(i) * E::kBytes;
    few.Take(i + kLanes <= end ? E::Load(from) : E::LoadFirst(from, static_cast<size_t>(end - i)),
             i, hn::Zero(d));
  }
  return few.count();
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
