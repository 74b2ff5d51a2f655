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
  double square[kBins] = {};  // the sum of the squared weights
  int64_t count[kBins] = {};

  // Pre: the elements are finite and not all equal.
  MassBins(const Undecided& from, Undecided::Range range)
      : min(static_cast<double>(range.min)),
        width((static_cast<double>(range.max) - min) / static_cast<double>(kBins)) {
    for (int64_t i = 0; i < from.count; ++i) {
      const double place = (static_cast<double>(from.x[i]) - min) / width;
      const int64_t bin = std::min(static_cast<int64_t>(place), kBins - 1);
      const auto weight = static_cast<double>(from.weight[i]);
      mass[bin] += weight;
      square[bin] += weight * weight;
      ++count[bin];
    }
  }

  // The bins from the lowest value on.
  struct Lowest {
    int64_t bin = 0;  // the last of them
    int64_t count = 0;
    double mass = 0;
    double square = 0;

    // Of so many columns of equal weight a sum of random ones would be as certain.
    double Columns() const { return square > 0 ? mass * mass / square : 0; }
  };
  // The bins up to the first one with which the mass reaches `below`. All if there is less.
  Lowest Reach(double below) const {
    Lowest lowest;
    for (;; ++lowest.bin) {
      lowest.count += count[lowest.bin];
      lowest.mass += mass[lowest.bin];
      lowest.square += square[lowest.bin];
      if (lowest.mass >= below || lowest.bin + 1 == kBins) {
        return lowest;
      }
    }
  }
  // The last bin that has, with those above it, so many columns. The lowest bin if there are fewer.
  int64_t BinOfBest(int64_t columns) const {
    int64_t bin = kBins - 1;
    for (int64_t above = count[bin]; above < columns && bin > 0;) {
      above += count[--bin];
    }
    return bin;
  }
  float LowerEdge(int64_t bin) const {
    return static_cast<float>(min + static_cast<double>(bin) * width);
  }
};

// How many of the picked columns a window may have, with everything above it, to be kept with that;
// and how many it has if they do not tell where the nucleus ends, for one of about a thousand
// columns.
constexpr int64_t kMostOfFew = 48;
constexpr int64_t kFewPicked = 24;

// Makes the window of the place with the mass `below`. `many`: the nucleus is known to be large.
inline void FindWindow(const MassBins& bins, double below, bool many, WindowEstimate* estimate) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const MassBins::Lowest end = bins.Reach(below);
  const double columns = many ? static_cast<double>(end.count) : end.Columns();
  const double slack = std::max(0.125, 6 / std::sqrt(columns + 1));
  const int64_t first = slack < 1 ? bins.Reach(below * (1 - slack)).bin : -1;
  // If the picked columns do not tell where the nucleus ends, then it is small, as a rule: most of
  // what is below its end lies in a few of them.
  if (!many && (first < 0 || first > bins.BinOfBest(kMostOfFew))) {
    estimate->few = true;
    estimate->low = bins.LowerEdge(first < 0 ? bins.BinOfBest(kFewPicked) : first);
    estimate->high = kInfinity;
    return;
  }
  const int64_t last = bins.Reach(below * (1 + slack)).bin;
  estimate->low = first < 0 ? -kInfinity : bins.LowerEdge(first);
  estimate->high = last + 1 < MassBins::kBins ? bins.LowerEdge(last + 1) : kInfinity;
}

// Reads the first columns of every few thousand: neighbours, which the cache's prefetchers expect.
template <DType kDType, bool kPlain>
WindowEstimate EstimateRow(const WeightRow& row, int64_t n, const WindowTarget& target,
                           uint8_t* scratch) {
  using E = Elements<kDType>;
  const WeightTag d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const WeightReader<kDType, false, kPlain> read(row, {});
  float* const x = reinterpret_cast<float*>(scratch);
  Undecided picked{x, x + EstimateRoom(n)};
  const WeightVec top = hn::Set(d, target.top);
  WideSum below_top;
  const auto take = [&](int64_t first, int64_t step) HWY_ATTR {
    for (int64_t i = first; i + kEstimateRun <= n; i += step) {
      for (int64_t j = 0; j < kEstimateRun; j += kLanes) {
        const WeightVec value = E::Load(row.x + static_cast<size_t>(i + j) * E::kBytes);
        const WeightVec weight = read.Kept(value);
        below_top.Add(hn::IfThenElseZero(hn::Lt(value, top), weight));
        if (j % (kPickStep * 16) < 16) {
          picked.Append(value, weight, hn::Gt(weight, hn::Zero(d)));
        }
      }
    }
  };
  constexpr int64_t kParts = 4;
  WindowEstimate estimate;
  take(0, kParts * kEstimateStep);
  const double tail = (1 - target.share) * target.top_mass;
  if (target.all == 0 && below_top.Sum() * (kParts * kEstimateStep / kEstimateRun) < 0.25 * tail) {
    return estimate;  // a quarter of what is read tells well enough that the best columns do
  }
  for (int64_t part = 1; part < kParts; ++part) {
    take(part * kEstimateStep, kParts * kEstimateStep);
  }
  estimate.all = target.all > 0
                     ? target.all
                     : target.top_mass + below_top.Sum() * (kEstimateStep / kEstimateRun);
  const double rest = estimate.all - target.top_mass;
  if (picked.count == 0 || rest < 0.75 * (1 - target.share) * estimate.all) {
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
  FindWindow(bins, below, /*many=*/target.all > 0, &estimate);
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

// Keeping a column is rare enough for a branch: without one, each vector would be compressed twice.
template <DType kDType, bool kPlain>
WindowSums FewOf(const WeightRow& row, float low, int64_t begin, int64_t end, float* values,
                 int32_t* columns) {
  using E = Elements<kDType>;
  const WeightTag d;
  const hn::RebindToSigned<WeightTag> di;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const WeightReader<kDType, false, kPlain> read(row, {});
  const WeightVec limit = hn::Set(d, low);
  int64_t count = 0;
  const auto take = [&](WeightVec value, int64_t column) HWY_ATTR {
    const auto reach = hn::Ge(value, limit);
    if (HWY_UNLIKELY(!hn::AllFalse(d, reach))) {
      hn::CompressStore(hn::Iota(di, static_cast<int32_t>(column)), hn::RebindMask(di, reach), di,
                        columns + count);
      count += static_cast<int64_t>(hn::CompressStore(value, reach, d, values + count));
    }
    return read.Kept(value);
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
  return {sum.Sum(), 0, 0, count};
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
