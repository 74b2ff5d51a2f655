// A row while its best are selected: its elements as keys, its candidates, and how the answer is
// written. Shared by both algorithms. Included once per SIMD target.
#if defined(RIFFLE_TOPK_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_ROW_INL_H_
#undef RIFFLE_TOPK_ROW_INL_H_
#else
#define RIFFLE_TOPK_ROW_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/order-inl.h"
#include "select/bound-inl.h"
#include "select/compress-inl.h"
#include "select/limits.h"
#include "select/sort-inl.h"
#include "topk/row_scratch.h"
#include "topk/topk_args.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::LoadKeys;
using core::HWY_NAMESPACE::LoadKeysPart;
using core::HWY_NAMESPACE::Tag;
using select::HWY_NAMESPACE::Bits;
using select::HWY_NAMESPACE::Bound;
using select::HWY_NAMESPACE::Candidates;
using select::HWY_NAMESPACE::CompressIndices;
using select::HWY_NAMESPACE::CountGe;
using select::HWY_NAMESPACE::FindBound;
using select::HWY_NAMESPACE::kDense;
using select::HWY_NAMESPACE::KeepGe;
using select::HWY_NAMESPACE::Pad;
using select::HWY_NAMESPACE::SortedIndices;
using select::HWY_NAMESPACE::TakeEqual;

// A row, and the arrays that selecting from it works in.
template <class F>
struct Row {
  using TI = typename F::Key;
  using Element = typename F::Element;

  const RowTask& task;
  const Element* x;
  size_t n;
  size_t k;
  F format;
  Candidates<TI> candidates;
  int32_t* buckets;  // the buckets to look at again
  int32_t* ties;     // indices of elements equal to the k-th value, if there are too many
  uint64_t* pairs;   // for the radix sort
  size_t examined = 0;

  Row(const RowTask& row_task, F row_format, const RowScratch& layout, uint8_t* scratch)
      : task(row_task),
        x(static_cast<const Element*>(row_task.x)),
        n(static_cast<size_t>(row_task.n)),
        k(static_cast<size_t>(row_task.k)),
        format(row_format) {
    candidates = {reinterpret_cast<TI*>(layout.keys.At(scratch)), layout.indices.At(scratch), 0};
    buckets = layout.buckets.At(scratch);
    ties = layout.ties.At(scratch);
    pairs = layout.pairs.At(scratch);
  }

  Element At(size_t i) const {  // at any alignment
    Element value;
    std::memcpy(&value, static_cast<const uint8_t*>(task.x) + i * sizeof(value), sizeof(value));
    return value;
  }
};

// The keys of x[i, i + lanes), and which of them are elements before `end`. Reads nothing past
// `end`.
template <typename TI, class D = Tag<TI>>
struct Loaded {
  hn::Vec<D> keys;
  hn::Mask<D> valid;
};
template <class F>
HWY_INLINE Loaded<typename F::Key> LoadRow(const Row<F>& row, size_t i, size_t end) {
  const Tag<typename F::Key> d;
  if (HWY_LIKELY(i + hn::Lanes(d) <= end)) {
    return {LoadKeys(d, row.x + i, row.format), hn::FirstN(d, hn::Lanes(d))};
  }
  return {LoadKeysPart(d, row.x + i, end - i, row.format), hn::FirstN(d, end - i)};
}

// Which elements of x[begin, begin + 64) are before `end` and have a key >= bound, one bit each.
template <class F>
HWY_INLINE uint64_t ReachBits(const Row<F>& row, size_t begin, size_t end, typename F::Key bound) {
  using TI = typename F::Key;
  const Tag<TI> d;
  const auto limit = hn::Set(d, bound);
  uint64_t bits = 0;
  for (size_t v = 0; v < 64 && begin + v < end; v += hn::Lanes(d)) {
    const Loaded<TI> loaded = LoadRow(row, begin + v, end);
    bits |= Bits(d, hn::And(loaded.valid, hn::Ge(loaded.keys, limit))) << v;
  }
  return bits;
}

// Appends the elements of x[begin, end) whose key is >= bound to row.candidates. Unless `exact`, it
// may also append some below the bound where many reach it.
template <class F>
HWY_INLINE void AppendRange(Row<F>& row, size_t begin, size_t end, typename F::Key bound,
                            bool exact) {
  using TI = typename F::Key;
  const Tag<TI> d;
  Candidates<TI> candidates = row.candidates;  // a copy in registers: stores may alias the row
  for (size_t i = begin; i < end; i += 64) {
    uint64_t bits = ReachBits(row, i, end, bound);
    if (HWY_UNLIKELY(std::popcount(bits) > kDense)) {
      for (size_t v = i; v < std::min(i + 64, end); v += hn::Lanes(d)) {
        const Loaded<TI> loaded = LoadRow(row, v, end);
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

// Writes the answer: the best `best` candidates, then `ties` ties, k in all.
template <class F>
void Emit(Row<F>& row, size_t best, size_t ties) {
  int32_t* out = row.task.indices;
  std::copy_n(row.candidates.indices, best, out);
  std::copy_n(row.ties, ties, out + best);
  if (row.task.values != nullptr) {
    uint8_t* values = static_cast<uint8_t*>(row.task.values);
    for (size_t i = 0; i < row.k; ++i) {
      const typename F::Element value = row.At(static_cast<size_t>(out[i]));
      std::memcpy(values + i * sizeof(value), &value, sizeof(value));
    }
  }
}

// Sorts the candidates, all of which are better than the ties, and writes the answer.
template <class F>
void SortAndEmit(Row<F>& row, size_t ties) {
  using TI = typename F::Key;
  Candidates<TI>& candidates = row.candidates;
  const size_t best = row.k - ties;
  if (candidates.count <= select::kRankLimit || row.task.sorted || candidates.count > best) {
    int32_t ranked[select::kRankLimit];
    const int32_t* sorted = SortedIndices(candidates, ranked, row.pairs);
    if (sorted == ranked) {
      std::copy_n(ranked, best, candidates.indices);
    }
  }
  Emit(row, best, ties);
}

// Prunes the candidates until few enough are left to sort, and finishes the row. There are at least
// k of them, unless another thread wrote to the row after its bound was found; index 0 then
// replaces the missing ones.
template <class F>
void SelectFromCandidates(Row<F>& row) {
  using TI = typename F::Key;
  Candidates<TI>& candidates = row.candidates;
  for (; HWY_UNLIKELY(candidates.count < row.k); ++candidates.count) {
    candidates.keys[candidates.count] = row.format.lowest_key();
    candidates.indices[candidates.count] = 0;
  }
  const size_t limit = select::SortLimit(row.k, row.task.sorted);
  if (candidates.count <= limit) {
    SortAndEmit(row, 0);
    return;
  }
  const Tag<TI> d;
  Pad(d, candidates.keys, candidates.count);
  const Bound<TI> bound = FindBound(candidates.keys, candidates.count, row.k, limit,
                                    row.format.lowest_key(), row.format);
  size_t ties = 0;
  if (bound.num_reaching > limit) {  // too many ties; fewer than k candidates are above them
    const bool is_top = bound.key == row.format.top_key();
    const TI above = static_cast<TI>(bound.key + (is_top ? 0 : 1));
    ties = row.k - (is_top ? 0 : CountGe(candidates.keys, candidates.count, above));
    TakeEqual(candidates, bound.key, ties, row.ties);
    if (is_top) {
      candidates.count = 0;
    } else {
      KeepGe(candidates, above);
    }
  } else {
    KeepGe(candidates, bound.key);
  }
  SortAndEmit(row, ties);
}

template <class F>
void FillStats(const Row<F>& row) {
  using TI = typename F::Key;
  if (row.task.stats == nullptr) {
    return;
  }
  const Tag<TI> d;
  // The k-th value is the smallest of the answer, which may be unsorted.
  TI kth = row.format.top_key();
  for (size_t i = 0; i < row.k; ++i) {
    kth = std::min(kth, core::Key(row.At(static_cast<size_t>(row.task.indices[i])), row.format));
  }
  size_t ties = 0;
  for (size_t i = 0; i < row.n; i += hn::Lanes(d)) {
    const Loaded<TI> loaded = LoadRow(row, i, row.n);
    ties += hn::CountTrue(d, hn::And(loaded.valid, hn::Eq(loaded.keys, hn::Set(d, kth))));
  }
  TopKStats& stats = *row.task.stats;
  stats.kth_value = core::KeyToDouble(kth, row.format, row.task.dtype);
  stats.ties_at_kth = static_cast<int64_t>(ties);
  stats.elements_examined = static_cast<int64_t>(row.examined);
  stats.depth = 1;
}

// Widens the row's int32 indices to int64 where those are wanted. The int32 are in the second half
// of the memory of the int64, so going forward overwrites none before it is read.
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
