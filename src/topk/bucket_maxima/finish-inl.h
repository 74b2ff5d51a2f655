// From bucket maxima to the k best of a row.
#if defined(RIFFLE_TOPK_FINISH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_FINISH_INL_H_
#undef RIFFLE_TOPK_FINISH_INL_H_
#else
#define RIFFLE_TOPK_FINISH_INL_H_
#endif

#include <hwy/cache_control.h>

#include <algorithm>
#include <bit>

#include "topk/bucket_maxima/bucket_plan.h"
#include "topk/row-inl.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;

// Appends all elements >= bound, and perhaps others, of the buckets whose maximum reaches the
// bound; these are at most BucketLimit(k). Their lines are prefetched well ahead: one bucket's scan
// is too short for out-of-order execution to reach the next misses.
template <class F>
void Collect(Row<F>& row, const typename F::Key* maxima, typename F::Key bound, bool exact) {
  using TI = typename F::Key;
  constexpr size_t kLine = BucketBounds::kLine / sizeof(typename F::Element);
  constexpr size_t kAhead = 32;
  const Tag<TI> d;
  const BucketBounds bounds(row.task);
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  const auto limit = hn::Set(d, bound);
  size_t found = 0;
  for (size_t b = 0; b < buckets; b += hn::Lanes(d)) {  // the padding reaches no bound
    for (uint64_t bits = Bits(d, hn::Ge(hn::LoadU(d, maxima + b), limit)); bits != 0;
         bits &= bits - 1) {
      row.buckets[found++] = static_cast<int32_t>(b) + std::countr_zero(bits);
    }
  }
  const auto prefetch = [&](size_t i) {
    const auto bucket = static_cast<size_t>(row.buckets[std::min(i, found - 1)]);
    for (size_t j = bounds.Begin(bucket); j < bounds.End(bucket); j += kLine) {
      hwy::Prefetch(row.x + j);
    }
  };
  for (size_t i = 0; i < std::min(found, kAhead); ++i) {
    prefetch(i);
  }
  for (size_t i = 0; i < found; ++i) {
    prefetch(i + kAhead);
    const auto bucket = static_cast<size_t>(row.buckets[i]);
    AppendRange(row, bounds.Begin(bucket), bounds.End(bucket), bound, exact);
  }
}

// Stores the indices of the first `wanted` elements equal to `key` in row.ties. Stops as soon as it
// has them, so a row of equal elements takes no second pass. If another thread has written to the
// row there may be fewer; index 0 then replaces the missing ones.
template <class F>
void CollectTies(Row<F>& row, const typename F::Key* maxima, typename F::Key key, size_t wanted) {
  using TI = typename F::Key;
  const Tag<TI> d;
  const auto equal = hn::Set(d, key);
  const BucketBounds bounds(row.task);
  size_t taken = 0;
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  for (size_t b = 0; taken < wanted && b < buckets; ++b) {
    if (maxima[b] < key) {
      continue;
    }
    const size_t end = bounds.End(b);
    for (size_t i = bounds.Begin(b); i < end && taken < wanted; i += hn::Lanes(d)) {
      const Loaded<TI> loaded = LoadRow(row, i, end);
      const auto mask = hn::And(loaded.valid, hn::Eq(loaded.keys, equal));
      taken += CompressIndices(d, mask, static_cast<int32_t>(i), row.ties + taken);
    }
    row.examined += end - bounds.Begin(b);
  }
  for (; taken < wanted; ++taken) {
    row.ties[taken] = 0;
  }
}

// Makes all elements of the row candidates.
template <class F>
void TakeAll(Row<F>& row) {
  using TI = typename F::Key;
  const Tag<TI> d;
  Candidates<TI> candidates = row.candidates;  // a copy in registers: stores may alias the row
  candidates.count = 0;
  for (size_t i = 0; i < row.n; i += hn::Lanes(d)) {
    candidates.AppendAll(d, LoadRow(row, i, row.n).keys, static_cast<int32_t>(i));
  }
  row.candidates.count = row.n;
  row.examined += row.n;
}

// Finds a bound in a sample of the row that more than k elements should reach, then collects these
// in one pass. If they are fewer than k the sample was misleading, and all elements become
// candidates.
template <class F>
void SelectFromAll(Row<F>& row) {
  using TI = typename F::Key;
  Candidates<TI>& candidates = row.candidates;
  const TI lowest = row.format.lowest_key();
  TI bound = lowest;
  const SamplePlan plan = PlanSample(row.n, row.k);
  if (plan.count > 0) {
    const Tag<TI> d;
    for (size_t i = 0; i < plan.count; i += hn::Lanes(d)) {
      const size_t at = i / kMinBucket * plan.stride + i % kMinBucket;
      hn::StoreU(LoadRow(row, at, row.n).keys, d, candidates.keys + i);
    }
    Pad(d, candidates.keys, plan.count);
    bound = FindBound(candidates.keys, plan.count, plan.bound_rank,
                      plan.bound_rank + plan.bound_rank / 16, lowest, row.format)
                .key;
  }
  if (bound > lowest) {
    AppendRange(row, 0, row.n, bound, /*exact=*/true);
  }
  if (candidates.count < row.k) {
    TakeAll(row);
  }
  SelectFromCandidates(row);
}

// A bound from the maxima. Tries maxima of groups of maxima first, a few for each of the k: for
// data in no particular order the bound is as tight, and counting takes a fraction of the time.
template <class F>
Bound<typename F::Key> BoundFromMaxima(Row<F>& row, typename F::Key* maxima,
                                       typename F::Key floor) {
  using TI = typename F::Key;
  const Tag<TI> d;
  const size_t lanes = hn::Lanes(d);
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  const size_t limit = BucketLimit(row.k);
  Pad(d, maxima, buckets);
  const size_t group = MaximaPerGroup(buckets, row.k);
  if (group > 1) {
    // Group j has the buckets j, j + count, ...: the same ones for any vector length.
    const size_t count = (buckets / group + kMinBucket) / kMinBucket * kMinBucket;
    TI* of_groups = row.candidates.keys;
    for (size_t j = 0; j < count; j += lanes) {
      auto max = hn::LoadU(d, maxima + j);
      for (size_t i = j + count; i < buckets; i += count) {
        max = hn::Max(max, hn::LoadU(d, maxima + i));
      }
      hn::StoreU(max, d, of_groups + j);
    }
    Pad(d, of_groups, count);
    const Bound<TI> bound =
        FindBound(of_groups, count, row.k, row.k + row.k / 16 + 1, floor, row.format);
    const size_t reached = bound.num_reaching == 0 ? 0 : CountGe(maxima, buckets, bound.key);
    if (reached >= row.k && reached <= limit) {
      return {bound.key, reached};
    }
    floor = bound.key;
  }
  return FindBound(maxima, buckets, row.k, limit, floor, row.format);
}

template <class F>
void SelectFromBuckets(Row<F>& row, FirstPass pass, typename F::Key* maxima) {
  using TI = typename F::Key;
  const size_t limit = BucketLimit(row.k);
  const TI floor = pass == FirstPass::kPositive ? TI{1} : row.format.lowest_key();
  const Bound<TI> bound = BoundFromMaxima(row, maxima, floor);
  if (bound.num_reaching <= limit) {
    Collect(row, maxima, bound.key, /*exact=*/false);
    SelectFromCandidates(row);
    return;
  }
  // More buckets reach the bound than may be looked at, because of ties. Fewer than k are above it.
  if (bound.key < row.format.top_key()) {
    Collect(row, maxima, static_cast<TI>(bound.key + 1), /*exact=*/true);
  }
  if (row.candidates.count >= row.k) {
    SelectFromCandidates(row);
    return;
  }
  const size_t ties = row.k - row.candidates.count;
  CollectTies(row, maxima, bound.key, ties);
  SortAndEmit(row, ties);
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
