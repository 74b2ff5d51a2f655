// From bucket maxima to the k best of a row.
#if defined(RIFFLE_TOPK_FINISH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_FINISH_INL_H_
#undef RIFFLE_TOPK_FINISH_INL_H_
#else
#define RIFFLE_TOPK_FINISH_INL_H_
#endif

#include <hwy/cache_control.h>

#include "topk/bucket_maxima-inl.h"
#include "topk/finish.h"
#include "topk/select-inl.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;
using core::HWY_NAMESPACE::LoadPart;
using core::HWY_NAMESPACE::Tag;

// A row and where its finish works.
template <typename TI>
struct Row {
  const RowTask& task;
  const TI* x;
  size_t n;
  size_t k;
  core::Format<TI> format;
  Candidates<TI> candidates;
  int32_t* ids;     // buckets to look at again
  int32_t* ties;    // indices of elements equal to the k-th value, when they are more than fit
  uint64_t* pairs;  // radix sort
  size_t examined = 0;

  Row(const RowTask& row_task, core::Format<TI> row_format, const FinishLayout& layout,
      uint8_t* scratch)
      : task(row_task),
        x(static_cast<const TI*>(row_task.x)),
        n(static_cast<size_t>(row_task.n)),
        k(static_cast<size_t>(row_task.k)),
        format(row_format) {
    candidates = {reinterpret_cast<TI*>(scratch + layout.keys),
                  reinterpret_cast<int32_t*>(scratch + layout.indices), 0};
    ids = reinterpret_cast<int32_t*>(scratch + layout.ids);
    ties = reinterpret_cast<int32_t*>(scratch + layout.ties);
    pairs = reinterpret_cast<uint64_t*>(scratch + layout.pairs);
  }

  TI At(size_t i) const {  // of any alignment
    TI value;
    std::memcpy(&value, static_cast<const uint8_t*>(task.x) + i * sizeof(TI), sizeof(TI));
    return value;
  }
};

// Keys of x[i, i + lanes) and which of them are elements; nothing past `end` is read.
template <typename TI, class D = Tag<TI>>
struct Loaded {
  hn::Vec<D> keys;
  hn::Mask<D> valid;
};
template <typename TI>
HWY_INLINE Loaded<TI> LoadKeys(const Row<TI>& row, size_t i, size_t end) {
  const Tag<TI> d;
  if (HWY_LIKELY(i + hn::Lanes(d) <= end)) {
    return {Keys(d, hn::LoadU(d, row.x + i), row.format), hn::FirstN(d, hn::Lanes(d))};
  }
  return {Keys(d, LoadPart(d, row.x + i, end - i), row.format), hn::FirstN(d, end - i)};
}

// Which of x[begin, begin + 64) are before `end` and have a key >= bound, one bit each.
template <typename TI>
HWY_INLINE uint64_t ReachBits(const Row<TI>& row, size_t begin, size_t end, TI bound) {
  const Tag<TI> d;
  const auto limit = hn::Set(d, bound);
  uint64_t bits = 0;
  for (size_t v = 0; v < 64 && begin + v < end; v += hn::Lanes(d)) {
    const Loaded<TI> loaded = LoadKeys(row, begin + v, end);
    bits |= Bits(d, hn::And(loaded.valid, hn::Ge(loaded.keys, limit))) << v;
  }
  return bits;
}

// Appends to row.candidates the elements of x[begin, end) whose key is >= bound; where they are
// many and need not be `exact`, also some below it.
template <typename TI>
HWY_INLINE void AppendRange(Row<TI>& row, size_t begin, size_t end, TI bound, bool exact) {
  const Tag<TI> d;
  Candidates<TI> candidates = row.candidates;  // in registers: the stores may alias the row
  for (size_t i = begin; i < end; i += 64) {
    uint64_t bits = ReachBits(row, i, end, bound);
    if (HWY_UNLIKELY(std::popcount(bits) > kDense)) {
      for (size_t v = i; v < std::min(i + 64, end); v += hn::Lanes(d)) {
        const Loaded<TI> loaded = LoadKeys(row, v, end);
        if (!exact && v + hn::Lanes(d) <= end) {
          candidates.AppendAll(d, loaded.keys, static_cast<int32_t>(v));
        } else {
          const auto reach = hn::Ge(loaded.keys, hn::Set(d, bound));
          candidates.Append(d, loaded.keys, hn::And(loaded.valid, reach), static_cast<int32_t>(v));
        }
      }
      continue;
    }
    for (; bits != 0; bits &= bits - 1) {
      const size_t at = i + static_cast<size_t>(std::countr_zero(bits));
      candidates.keys[candidates.count] = core::Key(row.At(at), row.format);
      candidates.indices[candidates.count++] = static_cast<int32_t>(at);
    }
  }
  row.candidates.count = candidates.count;
  row.examined += end - begin;
}

// All elements >= bound, and perhaps others, from the buckets whose maximum reaches it, at most
// BucketLimit(k) of them. Their lines are asked for first: the look at a bucket is too short for
// the processor to see many buckets ahead.
template <typename TI>
void Collect(Row<TI>& row, const TI* maxima, TI bound, bool exact) {
  constexpr size_t kLine = 64 / sizeof(TI);
  constexpr size_t kAhead = 32;
  const Tag<TI> d;
  const size_t size = static_cast<size_t>(row.task.plan.size);
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  const auto limit = hn::Set(d, bound);
  size_t found = 0;
  for (size_t b = 0; b < buckets; b += hn::Lanes(d)) {  // what follows the maxima reaches no bound
    for (uint64_t bits = Bits(d, hn::Ge(hn::LoadU(d, maxima + b), limit)); bits != 0;
         bits &= bits - 1) {
      row.ids[found++] = static_cast<int32_t>(b) + std::countr_zero(bits);
    }
  }
  const auto prefetch = [&](size_t i) {
    const TI* bucket = row.x + static_cast<size_t>(row.ids[std::min(i, found - 1)]) * size;
    for (size_t j = 0; j < size; j += kLine) {
      hwy::Prefetch(bucket + j);
    }
  };
  for (size_t i = 0; i < std::min(found, kAhead); ++i) {
    prefetch(i);
  }
  for (size_t i = 0; i < found; ++i) {
    prefetch(i + kAhead);
    const size_t begin = static_cast<size_t>(row.ids[i]) * size;
    AppendRange(row, begin, std::min(row.n, begin + size), bound, exact);
  }
}

// The first `wanted` elements equal to `key`, by their indices, into row.ties. Stops as soon as it
// has them, so a row of equal elements costs no second pass. A row that another thread writes
// meanwhile may have fewer left: index 0 stands for the rest.
template <typename TI>
void CollectTies(Row<TI>& row, const TI* maxima, TI key, size_t wanted) {
  const Tag<TI> d;
  const auto equal = hn::Set(d, key);
  const size_t size = static_cast<size_t>(row.task.plan.size);
  size_t taken = 0;
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  for (size_t b = 0; taken < wanted && b < buckets; ++b) {
    if (maxima[b] < key) {
      continue;
    }
    const size_t end = std::min(row.n, (b + 1) * size);
    for (size_t i = b * size; i < end && taken < wanted; i += hn::Lanes(d)) {
      const Loaded<TI> loaded = LoadKeys(row, i, end);
      const auto mask = hn::And(loaded.valid, hn::Eq(loaded.keys, equal));
      taken += CompressIndices(d, mask, static_cast<int32_t>(i), row.ties + taken);
    }
    row.examined += end - b * size;
  }
  for (; taken < wanted; ++taken) {
    row.ties[taken] = 0;
  }
}

// Writes the answer: the best of the candidates, then ties until there are k.
template <typename TI>
void Emit(Row<TI>& row, size_t best, size_t ties) {
  int32_t* out = row.task.indices;
  std::copy_n(row.candidates.indices, best, out);
  std::copy_n(row.ties, ties, out + best);
  if (row.task.values != nullptr) {
    uint8_t* values = static_cast<uint8_t*>(row.task.values);
    for (size_t i = 0; i < row.k; ++i) {
      const TI value = row.At(static_cast<size_t>(out[i]));
      std::memcpy(values + i * sizeof(TI), &value, sizeof(TI));
    }
  }
}

// Puts the k best of the candidates, all of which belong before `ties` ties, in order and out.
template <typename TI>
void SortAndEmit(Row<TI>& row, size_t ties) {
  Candidates<TI>& candidates = row.candidates;
  const size_t best = row.k - ties;
  if (candidates.count <= kRankLimit) {
    Pad(Tag<TI>(), candidates.keys, candidates.count);
    int32_t order[kRankLimit];
    RankSort(candidates, order);
    std::copy_n(order, best, candidates.indices);
  } else if (row.task.sorted || candidates.count > best) {
    RadixSort(candidates, row.pairs);
  }
  Emit(row, best, ties);
}

// Narrows the candidates to few enough to sort, and finishes the row. There are at least k, unless
// another thread wrote to the row after its bound was found: index 0 stands for those that are
// gone.
template <typename TI>
void SelectFromCandidates(Row<TI>& row) {
  Candidates<TI>& candidates = row.candidates;
  for (; HWY_UNLIKELY(candidates.count < row.k); ++candidates.count) {
    candidates.keys[candidates.count] = row.format.lowest_key();
    candidates.indices[candidates.count] = 0;
  }
  const size_t limit = SortLimit(row.k, row.task.sorted);
  if (candidates.count <= limit) {
    SortAndEmit(row, 0);
    return;
  }
  const Tag<TI> d;
  Pad(d, candidates.keys, candidates.count);
  const Bound<TI> bound = FindBound(candidates.keys, candidates.count, row.k, limit,
                                    row.format.lowest_key(), row.format);
  size_t ties = 0;
  if (bound.reached > limit) {  // more ties than fit: fewer than k are above them
    const TI above = static_cast<TI>(bound.key + 1);
    ties = row.k - CountGe(candidates.keys, candidates.count, above);
    TakeEqual(candidates, bound.key, ties, row.ties);
    KeepGe(candidates, above);
  } else {
    KeepGe(candidates, bound.key);
  }
  SortAndEmit(row, ties);
}

// All elements of the row.
template <typename TI>
void TakeAll(Row<TI>& row) {
  const Tag<TI> d;
  Candidates<TI> candidates = row.candidates;  // in registers: the stores may alias the row
  candidates.count = 0;
  for (size_t i = 0; i < row.n; i += hn::Lanes(d)) {
    candidates.AppendAll(d, LoadKeys(row, i, row.n).keys, static_cast<int32_t>(i));
  }
  row.candidates.count = row.n;
  row.examined += row.n;
}

// A bound from a sample of the row, set so that more than k elements should reach it; one pass
// takes those that do. If they are fewer than k the sample misled, and all elements are candidates.
template <typename TI>
void SelectFromAll(Row<TI>& row) {
  Candidates<TI>& candidates = row.candidates;
  const TI lowest = row.format.lowest_key();
  TI bound = lowest;
  const SamplePlan plan = PlanSample(row.n, row.k);
  if (plan.count > 0) {
    const Tag<TI> d;
    for (size_t i = 0; i < plan.count; i += hn::Lanes(d)) {
      const size_t at = i / kMinBucket * plan.stride + i % kMinBucket;
      hn::StoreU(LoadKeys(row, at, row.n).keys, d, candidates.keys + i);
    }
    Pad(d, candidates.keys, plan.count);
    bound = FindBound(candidates.keys, plan.count, plan.k, plan.k + plan.k / 16, lowest, row.format)
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

// A bound from the maxima. First from maxima of maxima, a few for each of the k: for data in no
// particular order it is as tight, and its counts are over a fraction of the values.
template <typename TI>
Bound<TI> BoundFromMaxima(Row<TI>& row, TI* maxima, TI floor) {
  const Tag<TI> d;
  const size_t lanes = hn::Lanes(d);
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  const size_t limit = BucketLimit(row.k);
  Pad(d, maxima, buckets);
  const size_t group = MaximaGroup(buckets, row.k);
  if (group > 1) {
    // Group j: the buckets j, j + count, ...; the same groups for vectors of any length.
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
    const size_t reached = bound.reached == 0 ? 0 : CountGe(maxima, buckets, bound.key);
    if (reached >= row.k && reached <= limit) {
      return {bound.key, reached};
    }
    floor = bound.key;
  }
  return FindBound(maxima, buckets, row.k, limit, floor, row.format);
}

template <typename TI>
void SelectFromBuckets(Row<TI>& row, FirstPass pass, TI* maxima) {
  const size_t limit = BucketLimit(row.k);
  const TI floor = pass == FirstPass::kPositive ? TI{1} : row.format.lowest_key();
  const Bound<TI> bound = BoundFromMaxima(row, maxima, floor);
  if (bound.reached <= limit) {
    Collect(row, maxima, bound.key, /*exact=*/false);
    SelectFromCandidates(row);
    return;
  }
  // More buckets tie at the bound than may be looked at. Fewer than k are above it.
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

template <typename TI>
void FillStats(const Row<TI>& row) {
  if (row.task.stats == nullptr) {
    return;
  }
  const Tag<TI> d;
  // The k-th value is the least of the answer; when it is not sorted that has to be found.
  TI kth = row.format.top_key();
  for (size_t i = 0; i < row.k; ++i) {
    kth = std::min(kth, core::Key(row.At(static_cast<size_t>(row.task.indices[i])), row.format));
  }
  size_t ties = 0;
  for (size_t i = 0; i < row.n; i += hn::Lanes(d)) {
    const Loaded<TI> loaded = LoadKeys(row, i, row.n);
    ties += hn::CountTrue(d, hn::And(loaded.valid, hn::Eq(loaded.keys, hn::Set(d, kth))));
  }
  TopKStats& stats = *row.task.stats;
  stats.kth_value = core::KeyToFloat(row.format.smallest ? -kth : kth, row.task.dtype);
  stats.ties_at_kth = static_cast<int64_t>(ties);
  stats.elements_examined = static_cast<int64_t>(row.examined);
  stats.depth = 1;
}

// Turns the row's int32 indices into int64 where those are wanted. They lie in the second half of
// what they become, so that going forward none is overwritten before it is read.
inline void WidenIndices(const RowTask& task) {
  if (task.wide_indices == nullptr) {
    return;
  }
  const Tag<int64_t> wide;
  const hn::Rebind<int32_t, Tag<int64_t>> narrow;
  const auto count = static_cast<size_t>(task.k);
  size_t i = 0;
  for (; i + hn::Lanes(wide) <= count; i += hn::Lanes(wide)) {
    hn::StoreU(hn::PromoteTo(wide, hn::LoadU(narrow, task.indices + i)), wide,
               task.wide_indices + i);
  }
  for (; i < count; ++i) {
    int32_t index;
    std::memcpy(&index, task.indices + i, sizeof(index));
    const int64_t widened = index;
    std::memcpy(task.wide_indices + i, &widened, sizeof(widened));
  }
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
