// The place in a row where its mass, summed from the best column down, crosses a share of the
// whole: an estimate from some of the columns tells between which two values it must be, and one
// pass sums what is above these and keeps what is between. Included once per SIMD target.
#if defined(RIFFLE_SAMPLING_WINDOW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SAMPLING_WINDOW_INL_H_
#undef RIFFLE_SAMPLING_WINDOW_INL_H_
#else
#define RIFFLE_SAMPLING_WINDOW_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "sampling/nucleus-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The mass of some columns by value, in bins of equal width.
struct MassBins {
  static constexpr int64_t kBins = 512;
  double min, width;
  double mass[kBins] = {};
  int64_t count[kBins] = {};

  // Pre: the elements are finite and not all equal.
  MassBins(const Undecided& from, Undecided::Range range)
      : min(static_cast<double>(range.min)),
        width((static_cast<double>(range.max) - min) / static_cast<double>(kBins)) {
    for (int64_t i = 0; i < from.count; ++i) {
      const double place = (static_cast<double>(from.x[i]) - min) / width;
      const int64_t bin = std::min(static_cast<int64_t>(place), kBins - 1);
      mass[bin] += static_cast<double>(from.weight[i]);
      ++count[bin];
    }
  }

  // The first bin in which the mass from the lowest value on reaches `below`, and the elements up
  // to there. The last bin if there is less.
  int64_t BinAt(double below, int64_t* elements) const {
    double sum = mass[0];
    *elements = count[0];
    int64_t bin = 0;
    while (sum < below && bin + 1 < kBins) {
      ++bin;
      sum += mass[bin];
      *elements += count[bin];
    }
    return bin;
  }
  float LowerEdge(int64_t bin) const {
    return static_cast<float>(min + static_cast<double>(bin) * width);
  }
};

// Reads the first columns of every few thousand: neighbours, which the cache's prefetchers expect.
template <DType kDType>
WindowEstimate EstimateRow(const WeightRow& row, int64_t n, const WindowTarget& target,
                           uint8_t* scratch) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const WeightReader<kDType, false> read(row, {});
  float* const x = reinterpret_cast<float*>(scratch);
  Undecided picked{x, x + EstimateRoom(n)};
  const WeightVec top = hn::Set(d, target.top);
  WideSum below_top;
  for (int64_t i = 0; i + kEstimateRun <= n; i += kEstimateStep) {
    for (int64_t j = 0; j < kEstimateRun; j += kLanes) {
      const WeightVec value = E::Load(row.x + static_cast<size_t>(i + j) * E::kBytes);
      const WeightVec weight = read.Kept(value);
      below_top.Add(hn::IfThenElseZero(hn::Lt(value, top), weight));
      if (j % (kPickStep * 16) < 16) {
        picked.Append(value, weight, hn::Gt(weight, hn::Zero(d)));
      }
    }
  }
  WindowEstimate estimate;
  estimate.all = target.all > 0
                     ? target.all
                     : target.top_mass + below_top.Sum() * (kEstimateStep / kEstimateRun);
  const double rest = estimate.all - target.top_mass;
  if (picked.count == 0 || rest < 0.5 * (1 - target.share) * estimate.all) {
    return estimate;
  }
  const Undecided::Range range = picked.Extremes();
  if (!(range.min < range.max) || range.max == kInfinity) {
    estimate.low = estimate.high = range.max;
    return estimate;
  }
  // Measured from below, because the mass above rests on few columns with much mass.
  const MassBins bins(picked, range);
  const double below =
      (1 - target.share) * estimate.all * kEstimateRun / (kEstimateStep * kPickStep);
  int64_t rests_on = 0;
  bins.BinAt(below, &rests_on);
  const double slack = std::max(0.125, 6 / std::sqrt(static_cast<double>(rests_on + 1)));
  const int64_t last = bins.BinAt(below * (1 + slack), &rests_on);
  estimate.high = last + 1 < MassBins::kBins ? bins.LowerEdge(last + 1) : kInfinity;
  estimate.low =
      slack < 1 ? bins.LowerEdge(bins.BinAt(below * (1 - slack), &rests_on)) : -kInfinity;
  return estimate;
}

// Sums weights as SumOf does: eight vectors in pairs in f32, the results in double.
HWY_INLINE WeightVec AddEight(const WeightVec* v) {
  const WeightVec first = hn::Add(hn::Add(v[0], v[1]), hn::Add(v[2], v[3]));
  return hn::Add(first, hn::Add(hn::Add(v[4], v[5]), hn::Add(v[6], v[7])));
}

template <DType kDType, bool kPlain>
WindowSums WindowOf(const WeightRow& row, const WindowEstimate& window, int64_t begin, int64_t end,
                    float* values) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightReader<kDType, false, kPlain> read(row, {});
  const WeightVec low = hn::Set(d, window.low);
  const WeightVec high = hn::Set(d, window.high);
  float* out = values;
  size_t above_count = 0;
  const auto take = [&](WeightVec value, WeightVec& weight, WeightVec& above) HWY_ATTR {
    weight = read.Kept(value);
    const auto over = hn::Gt(value, high);
    above = hn::IfThenElseZero(over, weight);
    above_count += hn::CountTrue(d, over);
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
  return {all_sum.Sum(), above_sum.Sum(), static_cast<int64_t>(above_count), out - values};
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
