// Lists of candidates whose exact logits are not known, only bounds of them. Included once per SIMD
// target.
#if defined(RIFFLE_LM_HEAD_PREFILTER_CANDIDATE_BOUNDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PREFILTER_CANDIDATE_BOUNDS_INL_H_
#undef RIFFLE_LM_HEAD_PREFILTER_CANDIDATE_BOUNDS_INL_H_
#else
#define RIFFLE_LM_HEAD_PREFILTER_CANDIDATE_BOUNDS_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <atomic>
#include <limits>

#include "core/atomic_max.h"
#include "core/order-inl.h"
#include "lm_head/prefilter/prefilter_kernels.h"
#include "lm_head/prefilter/tile_bounds-inl.h"
#include "select/bound-inl.h"
#include "select/compress-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;
using core::HWY_NAMESPACE::Tag;
using select::HWY_NAMESPACE::CompressIndices;
using select::HWY_NAMESPACE::FindBound;
using select::HWY_NAMESPACE::Pad;

// Candidates of a row, in any order. Room for select::kSlack more elements follows each array.
struct CandidateBounds {
  int32_t* lowers;  // keys that the exact logits reach
  float* uppers;    // values that the exact logits do not exceed; NaN: unknown
  int32_t* columns;
  size_t count;

  // Appends the tile's columns whose upper bound reaches `bound` or is NaN. `column` is the tile's
  // first one.
  HWY_INLINE void Append(const TileBounds& tile, int64_t row, int32_t column, float bound) {
    const LaneF32 df;
    const LaneI32 di;
    const auto limit = hn::Set(df, bound);
    for (int i = 0; i < tile.columns(); i += kLanes) {
      VecF32 lower;
      VecF32 upper;
      tile.Bounds(row, i, lower, upper);
      auto reach = hn::Not(hn::Lt(upper, limit));
      if (i + kLanes > tile.columns()) {
        reach = hn::And(reach, hn::FirstN(df, static_cast<size_t>(tile.columns() - i)));
      }
      if (hn::AllFalse(df, reach)) {
        continue;
      }
      const auto unknown = hn::Set(df, -std::numeric_limits<float>::infinity());
      const auto known = hn::IfThenElse(hn::IsNaN(lower), unknown, lower);
      const auto keys = Keys(di, hn::BitCast(di, known), core::kF32Format);
      hn::StoreU(hn::Compress(keys, hn::RebindMask(di, reach)), di, lowers + count);
      hn::StoreU(hn::Compress(upper, reach), df, uppers + count);
      count += CompressIndices(di, hn::RebindMask(di, reach), column + i, columns + count);
    }
  }

  // Drops the candidates whose upper bound is below `bound`.
  void DropBelow(float bound) {
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      if (!(uppers[i] < bound)) {
        lowers[kept] = lowers[i];
        uppers[kept] = uppers[i];
        columns[kept++] = columns[i];
      }
    }
    count = kept;
  }

  // A key that at least k of the logits reach; if ties allow it, at most `limit` lower bounds do.
  int32_t KnownBound(size_t k, size_t limit) {
    HWY_DASSERT(0 < k && k <= count);
    Pad(Tag<int32_t>(), lowers, count);
    return FindBound(lowers, count, k, limit, core::kF32Format.lowest_key(), core::kF32Format).key;
  }
};

// A value that k logits of the row reach: the highest that any chunk has proved so far.
HWY_INLINE float BoundOf(const SharedCandidates& shared, int64_t row) {
  return core::KeyToFloat(shared.bounds[row].load(std::memory_order_relaxed), DType::kF32);
}

// A row's list in a thread's scratch.
HWY_INLINE CandidateBounds CandidatesOf(const PrefilterChunk& task, int64_t row, uint8_t* scratch) {
  const PrefilterScratch& layout = task.layout;
  const int64_t at = row * layout.stride;
  return {layout.lowers.At(scratch) + at, layout.uppers.At(scratch) + at,
          layout.columns.At(scratch) + at, static_cast<size_t>(layout.counts.At(scratch)[row])};
}

// Raises the row's bound to what the list proves, then drops the candidates below the bound.
inline void TightenAndPrune(const PrefilterChunk& task, int64_t row, CandidateBounds& list) {
  if (list.count >= static_cast<size_t>(task.k)) {
    core::AtomicMax(task.shared.bounds[row], list.KnownBound(static_cast<size_t>(task.k),
                                                             static_cast<size_t>(task.plan.limit)));
  }
  list.DropBelow(BoundOf(task.shared, row));
}

// Spin lock: at most one chunk appends to a row's candidates at a time.
class RowLock {
 public:
  explicit RowLock(std::atomic<int32_t>& lock) : lock_(lock) {
    while (lock_.exchange(1, std::memory_order_acquire) != 0) {
      hwy::Pause();
    }
  }
  ~RowLock() { lock_.store(0, std::memory_order_release); }
  RowLock(const RowLock&) = delete;
  RowLock& operator=(const RowLock&) = delete;

 private:
  std::atomic<int32_t>& lock_;
};

// Appends a chunk's candidates of a row to those of the other chunks, and raises the bound to what
// all of them prove. If there are too many, the row falls back.
inline void MergeIntoShared(const PrefilterChunk& task, int64_t row, CandidateBounds& list) {
  const SharedCandidates& shared = task.shared;
  list.DropBelow(BoundOf(shared, row));
  if (list.count == 0) {
    return;
  }
  const RowLock lock(shared.locks[row]);
  const int64_t at = row * shared.stride;
  CandidateBounds all{shared.lowers + at, shared.uppers + at, shared.columns + at,
                      static_cast<size_t>(shared.counts[row])};
  if (all.count + list.count > static_cast<size_t>(task.plan.shared_capacity)) {
    return shared.FallBack(row);
  }
  std::copy_n(list.lowers, list.count, all.lowers + all.count);
  std::copy_n(list.uppers, list.count, all.uppers + all.count);
  std::copy_n(list.columns, list.count, all.columns + all.count);
  all.count += list.count;
  TightenAndPrune(task, row, all);
  shared.counts[row] = static_cast<int64_t>(all.count);
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
