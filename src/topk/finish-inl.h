// From bucket maxima to the k best of a row.
#if defined(RIFFLE_TOPK_FINISH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_FINISH_INL_H_
#undef RIFFLE_TOPK_FINISH_INL_H_
#else
#define RIFFLE_TOPK_FINISH_INL_H_
#endif

#include "topk/bucket_maxima-inl.h"
#include "topk/finish.h"
#include "topk/select-inl.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {

// A row and where its finish works.
template <typename TI>
struct Row {
  const RowTask& task;
  const TI* x;
  size_t n;
  size_t k;
  Format<TI> format;
  Candidates<TI> candidates;
  int32_t* ids;     // buckets to look at again
  int32_t* ties;    // indices of elements equal to the k-th value, when they are more than fit
  uint64_t* pairs;  // radix sort
  size_t examined = 0;

  Row(const RowTask& row_task, Format<TI> row_format, uint8_t* scratch)
      : task(row_task),
        x(static_cast<const TI*>(row_task.x)),
        n(static_cast<size_t>(row_task.n)),
        k(static_cast<size_t>(row_task.k)),
        format(row_format) {
    const FinishLayout layout = PlanFinish(row_task);
    candidates = {reinterpret_cast<TI*>(scratch + layout.keys),
                  reinterpret_cast<int32_t*>(scratch + layout.indices), 0};
    ids = reinterpret_cast<int32_t*>(scratch + layout.ids);
    ties = reinterpret_cast<int32_t*>(scratch + layout.ties);
    pairs = reinterpret_cast<uint64_t*>(scratch + layout.pairs);
  }

  TI At(int32_t i) const {  // of any alignment
    TI value;
    std::memcpy(&value, static_cast<const uint8_t*>(task.x) + i * int64_t{sizeof(TI)}, sizeof(TI));
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
  return {Keys(d, hn::LoadN(d, row.x + i, end - i), row.format), hn::FirstN(d, end - i)};
}

// Appends to `candidates` the elements of a bucket whose key is >= bound. Where compressing is
// cheap it is done for every vector: a branch on whether it holds one would be mispredicted for
// most buckets, and wait for the bucket to arrive from memory each time.
template <typename TI>
HWY_INLINE void AppendBucket(Row<TI>& row, size_t bucket, TI bound,
                             Candidates<TI>& candidates) {
  const Tag<TI> d;
  const auto limit = hn::Set(d, bound);
  const size_t size = static_cast<size_t>(row.task.plan.size);
  const size_t end = std::min(row.n, (bucket + 1) * size);
  for (size_t i = bucket * size; i < end; i += hn::Lanes(d)) {
    const Loaded<TI> loaded = LoadKeys(row, i, end);
    const auto mask = hn::And(loaded.valid, hn::Ge(loaded.keys, limit));
    if constexpr (HWY_TARGET > HWY_AVX3) {  // targets are numbered from the best down
      if (hn::AllFalse(d, mask)) {
        continue;
      }
    }
    candidates.Append(d, loaded.keys, mask, static_cast<int32_t>(i));
  }
  row.examined += end - bucket * size;
}

// All elements >= bound, from the buckets whose maximum reaches it, at most BucketLimit(k) of them.
template <typename TI>
void Collect(Row<TI>& row, const TI* maxima, TI bound) {
  const Tag<TI> d;
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  const auto limit = hn::Set(d, bound);
  size_t found = 0;
  for (size_t b = 0; b < buckets; b += hn::Lanes(d)) {
    const auto mask = hn::Ge(hn::LoadU(d, maxima + b), limit);
    found += CompressIndices(d, mask, static_cast<int32_t>(b), row.ids + found);
  }
  row.candidates.count = 0;
  for (size_t i = 0; i < found; ++i) {
    AppendBucket(row, static_cast<size_t>(row.ids[i]), bound, row.candidates);
  }
}

// The first `wanted` elements equal to `key`, by their indices, into row.ties. Stops as soon as it
// has them, so a row of equal elements costs no second pass.
template <typename TI>
void CollectTies(Row<TI>& row, const TI* maxima, TI key, size_t wanted) {
  const Tag<TI> d;
  const auto equal = hn::Set(d, key);
  const size_t size = static_cast<size_t>(row.task.plan.size);
  size_t taken = 0;
  for (size_t b = 0; taken < wanted; ++b) {
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
      const TI value = row.At(out[i]);
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
    RankSort(candidates, best, order);
    std::copy_n(order, best, candidates.indices);
  } else if (row.task.sorted || candidates.count > best) {
    RadixSort(candidates, row.pairs);
  }
  Emit(row, best, ties);
}

// Narrows the candidates to few enough to sort, and finishes the row. Pre: at least k candidates.
template <typename TI>
void SelectFromCandidates(Row<TI>& row) {
  Candidates<TI>& candidates = row.candidates;
  const size_t limit = SortLimit(row.k, row.task.sorted);
  if (candidates.count <= limit) {
    SortAndEmit(row, 0);
    return;
  }
  Pad(Tag<TI>(), candidates.keys, candidates.count);
  const Bound<TI> bound = FindBound(candidates.keys, candidates.count, row.k, limit,
                                    row.format.lowest_key(), row.format);
  size_t ties = 0;
  if (bound.count > limit) {  // more ties than fit: fewer than k are above them
    const size_t above =
        CountGe(candidates.keys, candidates.count, static_cast<TI>(bound.key + 1));
    ties = row.k - above;
    TakeEqual(candidates, bound.key, ties, row.ties);
    KeepGe(candidates, static_cast<TI>(bound.key + 1));
  } else {
    KeepGe(candidates, bound.key);
  }
  SortAndEmit(row, ties);
}

template <typename TI>
void SelectFromAll(Row<TI>& row) {
  const Tag<TI> d;
  Candidates<TI>& candidates = row.candidates;
  for (size_t i = 0; i < row.n; i += hn::Lanes(d)) {
    const Loaded<TI> loaded = LoadKeys(row, i, row.n);
    hn::StoreU(loaded.keys, d, candidates.keys + i);
    CompressIndices(d, hn::FirstN(d, hn::Lanes(d)), static_cast<int32_t>(i),
                    candidates.indices + i);
  }
  candidates.count = row.n;
  SelectFromCandidates(row);
}

template <typename TI>
void SelectFromBuckets(Row<TI>& row, bool keyed, TI* maxima) {
  const size_t buckets = static_cast<size_t>(row.task.plan.buckets);
  const size_t limit = BucketLimit(row.k);
  Pad(Tag<TI>(), maxima, buckets);
  const TI floor = keyed ? row.format.lowest_key() : TI{1};
  const Bound<TI> bound = FindBound(maxima, buckets, row.k, limit, floor, row.format);
  if (bound.count <= limit) {
    Collect(row, maxima, bound.key);
    SelectFromCandidates(row);
    return;
  }
  // More buckets tie at the bound than may be looked at. Fewer than k are above it.
  row.candidates.count = 0;
  if (bound.key < row.format.nan_key()) {
    Collect(row, maxima, static_cast<TI>(bound.key + 1));
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
  TI kth = row.format.nan_key();
  for (size_t i = 0; i < row.k; ++i) {
    kth = std::min(kth, Key(row.At(row.task.indices[i]), row.format));
  }
  size_t ties = 0;
  for (size_t i = 0; i < row.n; i += hn::Lanes(d)) {
    const Loaded<TI> loaded = LoadKeys(row, i, row.n);
    ties += hn::CountTrue(d, hn::And(loaded.valid, hn::Eq(loaded.keys, hn::Set(d, kth))));
  }
  TopKStats& stats = *row.task.stats;
  stats.kth_value = KeyToFloat(kth, row.task.dtype);
  stats.ties_at_kth = static_cast<int64_t>(ties);
  stats.elements_examined = static_cast<int64_t>(row.examined);
  stats.depth = 1;
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
