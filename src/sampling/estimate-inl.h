// Estimates the value at which the mass of a row, summed from the best column down, reaches a given
// share of the whole, from a sample of the columns. Included once per SIMD target.
#if defined(RIFFLE_SAMPLING_ESTIMATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SAMPLING_ESTIMATE_INL_H_
#undef RIFFLE_SAMPLING_ESTIMATE_INL_H_
#else
#define RIFFLE_SAMPLING_ESTIMATE_INL_H_
#endif

#include <hwy/cache_control.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "sampling/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A histogram of values with bins of equal width. The weight of a column is taken to be that of the
// middle of its bin.
struct MassBins {
  static constexpr int64_t kBins = 512;
  float min, width;
  HWY_ALIGN int32_t count[kBins] = {};
  HWY_ALIGN float weight[kBins];  // of one column

  // The bins divide [bottom, top]; lower values go to the first bin. `row.max` is the pivot. Pre:
  // bottom < top; x has `columns` elements, a multiple of the lanes, and none above `top`.
  MassBins(const WeightRow& row, float* x, int64_t columns, float bottom, float top)
      : min(bottom), width((top - bottom) / static_cast<float>(kBins)) {
    const WeightTag d;
    const hn::RebindToSigned<WeightTag> di;
    constexpr int64_t kLanes = hn::MaxLanes(d);
    const WeightVec start = hn::Set(d, bottom);
    const WeightVec per_value = hn::Set(d, static_cast<float>(kBins) / (top - bottom));
    const WeightVec last_bin = hn::Set(d, static_cast<float>(kBins - 1));
    // The bins are stored in the place of the values.
    auto* const bin = reinterpret_cast<int32_t*>(x);
    for (int64_t i = 0; i < columns; i += kLanes) {
      const WeightVec place = hn::Mul(hn::Sub(hn::Load(d, x + i), start), per_value);
      const WeightVec in_range = hn::Min(last_bin, hn::Max(place, hn::Zero(d)));
      hn::Store(hn::ConvertTo(di, in_range), di, bin + i);
    }
    CountBins(bin, columns);
    const WeightReader<DType::kF32, false, true> read(row, {});
    const WeightVec step = hn::Set(d, width);
    for (int64_t i = 0; i < kBins; i += kLanes) {
      const WeightVec middle = hn::Add(hn::Iota(d, static_cast<float>(i)), hn::Set(d, 0.5f));
      hn::Store(read.Kept(hn::Add(start, hn::Mul(middle, step))), d, weight + i);
    }
  }

  // Two tables in turn: neighbours are often in the same bin, and would wait for its store.
  void CountBins(const int32_t* bin, int64_t columns) {
    int32_t other[kBins] = {};
    for (int64_t i = 0; i + 1 < columns; i += 2) {
      // The mask: a NaN may have been converted to any integer.
      ++count[bin[i] & (kBins - 1)];
      ++other[bin[i + 1] & (kBins - 1)];
    }
    for (int64_t i = 0; i < kBins; ++i) {
      count[i] += other[i];
    }
  }

  // The totals of the lowest bins, [0, bin].
  struct Prefix {
    int64_t bin = 0;
    int64_t count = 0;  // of columns
    double mass = 0;
    double square = 0;  // the sum of the squared weights

    // The effective sample size: so many columns of equal weight have the same relative error.
    double EffectiveColumns() const { return square > 0 ? mass * mass / square : 0; }
  };
  // The fewest bins, from the lowest, whose mass reaches `below`; all bins if there is less mass.
  Prefix PrefixWithMass(double below) const {
    Prefix prefix;
    for (;; ++prefix.bin) {
      const auto columns = static_cast<double>(count[prefix.bin]);
      const auto each = static_cast<double>(weight[prefix.bin]);
      prefix.count += count[prefix.bin];
      prefix.mass += columns * each;
      prefix.square += columns * each * each;
      if (prefix.mass >= below || prefix.bin + 1 == kBins) {
        return prefix;
      }
    }
  }
  // The lowest bin b for which bins [b, kBins) hold at most `columns` columns; kBins if none does.
  int64_t BinOfBest(int64_t columns) const {
    int64_t bin = kBins;
    for (int64_t above = 0; bin > 0 && (above += count[bin - 1]) <= columns;) {
      --bin;
    }
    return bin;
  }
  // The lowest value of columns that are in this bin or above it.
  float LowerEdge(int64_t bin) const {
    return bin == 0 ? std::numeric_limits<float>::lowest() : min + static_cast<float>(bin) * width;
  }
};

// One column in 64 is picked. If at most kMaxFewPicked of the picked columns reach the window's
// lower end, the pass keeps all columns that do. If the sample does not tell where the nucleus
// ends, the lower end is set so that kTargetFewPicked reach it: enough for a nucleus of about a
// thousand columns.
constexpr int64_t kMaxFewPicked = 48;
constexpr int64_t kTargetFewPicked = 24;

// Places the window around the value below which the picked columns have the mass `below`, which
// is known up to a relative error. `many`: the nucleus is known to be large.
inline void FindWindow(const MassBins& bins, double below, double relative_error, bool many,
                       WindowEstimate* estimate) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int64_t best = bins.BinOfBest(kTargetFewPicked);
  estimate->few_low = best == MassBins::kBins ? std::nextafter(bins.LowerEdge(best), kInfinity)
                                              : bins.LowerEdge(std::max<int64_t>(best, 1));
  const MassBins::Prefix end = bins.PrefixWithMass(below);
  const double columns = many ? static_cast<double>(end.count) : end.EffectiveColumns();
  // Five standard deviations for the picked columns, two (in `relative_error`) for the mass. With
  // six, 2.5 and a limit of 1 instead of 0.8, flat rows had larger windows, but fewer rows with a
  // small nucleus got a window instead of being kept whole (docs/lab/sampling.md).
  relative_error = std::max(0.125, std::sqrt(25 / (columns + 1) + relative_error * relative_error));
  const int64_t first =
      relative_error < 0.8 ? bins.PrefixWithMass(below * (1 - relative_error)).bin : -1;
  // If the picked columns do not tell where the nucleus ends, it is usually small: most of the mass
  // below its end is then in a few of the picked columns.
  if (!many && (first < 0 || first >= std::max<int64_t>(bins.BinOfBest(kMaxFewPicked), 1))) {
    estimate->few = true;
    estimate->low = first < 0 ? estimate->few_low : bins.LowerEdge(first);
    estimate->high = kInfinity;
    return;
  }
  const int64_t last = bins.PrefixWithMass(below * (1 + relative_error)).bin;
  estimate->low = bins.LowerEdge(std::max<int64_t>(first, 0));
  estimate->high = last + 1 < MassBins::kBins ? bins.LowerEdge(last + 1) : kInfinity;
}

// Visits the sample: the first kEstimateRun of every kEstimateStep columns, runs of neighbours that
// hardware prefetchers recognise. Calls f(i, j) for each vector at column i, element j of its run.
template <typename F>
HWY_INLINE void ForEstimate(int64_t n, const F& f) {
  for (int64_t i = 0; i + kEstimateRun <= n; i += kEstimateStep) {
    for (int64_t j = 0; j < kEstimateRun; j += hn::MaxLanes(WeightTag())) {
      f(i + j, j);
    }
  }
}

// The estimated mass of a row, and its relative error.
struct MassEstimate {
  double value;
  double relative_error;
};

template <DType kDType>
MassEstimate EstimateMass(const WeightRow& row, int64_t n) {
  const WeightTag d;
  const WeightReader<kDType, false, true> read(row, {});
  WideSum sum, squares;
  WeightVec part = hn::Zero(d), square = hn::Zero(d);
  int64_t columns = 0;
  ForEstimate(n, [&](int64_t i, int64_t j) HWY_ATTR {
    const WeightVec weight = read.At(i);
    part = hn::Add(part, weight);
    square = hn::MulAdd(weight, weight, square);
    if (j + static_cast<int64_t>(hn::MaxLanes(d)) == kEstimateRun) {
      sum.Add(part);
      squares.Add(square);
      part = square = hn::Zero(d);
      columns += kEstimateRun;
    }
  });
  // The relative error is two standard deviations of the sum of as many random columns.
  const double mass = sum.Sum();
  return {mass * static_cast<double>(n) / static_cast<double>(columns),
          mass > 0 ? 2 * std::sqrt(squares.Sum()) / mass : 1};
}

template <DType kDType>
WindowEstimate EstimateRow(WeightRow row, int64_t n, const WindowTarget& target, uint8_t* scratch) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float* const picked = reinterpret_cast<float*>(scratch);
  int64_t count = 0;
  WeightVec max = hn::Set(d, -kInfinity);
  ForEstimate(n, [&](int64_t i, int64_t j) HWY_ATTR {
    const uint8_t* const from = row.x + static_cast<size_t>(i) * E::kBytes;
    // Prefetches the next run, which hardware prefetchers do not foresee; harmless past the row.
    hwy::Prefetch(reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(from) +
                                                   kEstimateStep * E::kBytes));
    const WeightVec value = E::Load(from);
    max = hn::Max(max, value);
    if (j % (kPickStep * 16) < 16) {
      hn::Store(value, d, picked + count);
      count += hn::MaxLanes(d);
    }
  });
  const float top = hn::ReduceMax(d, max);
  if (!std::isfinite(top)) {
    return {.pivot = top};
  }
  // Above the best sampled column, as the row may have better ones; far above loses precision.
  const float pivot = top + 3 / row.scale;
  if (target.mass == 0) {
    row.max = std::isfinite(pivot) ? pivot : top;
  }
  const MassEstimate mass =
      target.mass > 0 ? MassEstimate{target.mass, 0} : EstimateMass<kDType>(row, n);
  // Lower columns have a negligible mass.
  const WeightVec bottom =
      hn::Set(d, std::max(top - 64 / row.scale, std::numeric_limits<float>::lowest()));
  WeightVec min = hn::Set(d, top);
  for (int64_t i = 0; i < count; i += hn::MaxLanes(d)) {
    min = hn::Min(min, hn::Max(hn::Load(d, picked + i), bottom));
  }
  WindowEstimate estimate{.pivot = row.max, .mass = mass.value, .low = top, .high = top};
  const float lowest = hn::ReduceMin(d, min);
  if (!(lowest < top) || !std::isfinite(top - lowest)) {
    estimate.few_low = std::nextafter(top, kInfinity);
    return estimate;
  }
  const MassBins bins(row, picked, count, lowest, top);
  const double below =
      (1 - target.share) * mass.value * static_cast<double>(count) / static_cast<double>(n);
  FindWindow(bins, below, mass.relative_error, /*many=*/target.mass > 0, &estimate);
  return estimate;
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
