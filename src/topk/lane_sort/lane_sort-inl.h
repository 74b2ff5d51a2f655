// Exact top-k by lanes. Column c belongs to lane c % lanes. A pass over the row keeps the m best of
// each lane, and a certificate tells whether the k best of the row are among them; if not, the next
// pass keeps more. After the JAX Pallas kernel of oliverdutton/fast_exact_topk_tpu.
//
// The certificate of a pass of depth m: the pivot is the best of the m-th elements of all lanes. At
// least k other kept elements, not counting the m-th of each lane, are better than the pivot.
// Everything better than the pivot has been kept, so the k best are among these. The certificate
// holds exactly when no lane has m of the k best.
#if defined(RIFFLE_TOPK_LANE_SORT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_LANE_SORT_INL_H_
#undef RIFFLE_TOPK_LANE_SORT_INL_H_
#else
#define RIFFLE_TOPK_LANE_SORT_INL_H_
#endif

#include <algorithm>

#include "topk/lane_sort/lane_pass-inl.h"
#include "topk/lane_sort/lane_sort.h"
#include "topk/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
using core::HWY_NAMESPACE::Tag;

// Whether a pass of depth m certifies. If so, the k best and perhaps more are left in
// row.candidates.
template <typename TI>
bool Certify(Row<core::Format<TI>>& row, size_t lanes, size_t m) {
  const size_t kept = (m - 1) * lanes;
  if (kept == 0) {
    return false;
  }
  TI* keys = row.candidates.keys;
  const int32_t* columns = row.candidates.indices;
  TI pivot = kEmpty<TI>;
  int32_t pivot_column = 0;
  for (size_t slot = kept; slot < kept + lanes; ++slot) {
    if (keys[slot] > pivot || (keys[slot] == pivot && columns[slot] < pivot_column)) {
      pivot = keys[slot];
      pivot_column = columns[slot];
    }
  }
  row.candidates.count = kept;
  Pad(Tag<TI>(), keys, kept);  // overwrites the m-th elements, which are not needed any more
  const TI above = std::max(static_cast<TI>(pivot + 1), row.format.lowest_key());
  const Bound<TI> bound =
      FindBound(keys, kept, row.k, select::SortLimit(row.k, row.task.sorted), above, row.format);
  if (bound.num_reaching >= row.k) {
    KeepGe(row.candidates, bound.key);
    return true;
  }
  if (pivot == kEmpty<TI>) {  // another thread removed elements from the row
    return false;
  }
  // Certifies only together with elements that equal the pivot and have a lower column.
  size_t reached = CountGe(keys, kept, above);
  for (size_t slot = 0; slot < kept; ++slot) {
    if (keys[slot] == pivot) {
      const bool better = columns[slot] < pivot_column;
      reached += better ? 1 : 0;
      keys[slot] = better ? pivot : kEmpty<TI>;
    }
  }
  if (reached < row.k) {
    return false;
  }
  KeepGe(row.candidates, pivot);
  return true;
}

// Makes passes until one certifies. Returns the depth.
template <typename TI>
size_t RunPasses(Row<core::Format<TI>>& row, const LaneOptions& options,
                 const LaneScratch& layout) {
  const auto last = static_cast<size_t>(layout.last_depth);
  const auto lanes = static_cast<size_t>(options.lanes);
  LanePass<TI> pass(row, options, layout);
  size_t m = 0;
  for (size_t step = 0;; ++step) {
    const bool scheduled = step < options.schedule.size();
    m = scheduled ? static_cast<size_t>(options.schedule[step]) : 2 * m;
    row.examined += step == 0 ? 0 : row.n;
    pass.Run(std::min(m, last));
    if (Certify(row, lanes, std::min(m, last))) {
      return m - 1;
    }
    if (m >= last) {  // always certifies, unless another thread wrote to the row during the pass
      row.candidates.count = 0;
      return m - 1;
    }
  }
}

// Stores the candidates in `sorted`, in ascending order of index as the finish expects them.
template <typename TI>
void SortByIndex(const Candidates<TI>& candidates, Candidates<int32_t> by_index, uint64_t* pairs,
                 Candidates<TI>& sorted) {
  const size_t count = candidates.count;
  for (size_t i = 0; i < count; ++i) {
    by_index.keys[i] = -candidates.indices[i];
    by_index.indices[i] = static_cast<int32_t>(i);
  }
  by_index.count = count;
  int32_t ranked[select::kRankLimit];
  const int32_t* order = SortedIndices(by_index, ranked, pairs);
  for (size_t i = 0; i < count; ++i) {
    sorted.keys[i] = candidates.keys[order[i]];
    sorted.indices[i] = candidates.indices[order[i]];
  }
  sorted.count = count;
}

template <typename TI>
void LaneSort(const RowTask& task, const LaneOptions& options, core::Format<TI> format,
              uint8_t* scratch) {
  const LaneScratch layout = PlanLanes(task, options);
  format.smallest = !task.largest;
  Row<core::Format<TI>> row(task, format, layout.row, scratch);
  const size_t depth = RunPasses(row, options, layout);
  const Candidates<int32_t> by_index{layout.index_keys.At(scratch), layout.positions.At(scratch),
                                     0};
  Candidates<TI> sorted{reinterpret_cast<TI*>(layout.sorted_keys.At(scratch)),
                        layout.sorted_indices.At(scratch), 0};
  SortByIndex(row.candidates, by_index, row.pairs, sorted);
  row.candidates = sorted;
  SelectFromCandidates(row);
  FillStats(row);
  if (task.stats != nullptr) {
    task.stats->depth = static_cast<int32_t>(depth);
  }
  WidenIndices(task);
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
