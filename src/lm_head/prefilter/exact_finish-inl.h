// The exact answer for a row, from its candidates. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PREFILTER_EXACT_FINISH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PREFILTER_EXACT_FINISH_INL_H_
#undef RIFFLE_LM_HEAD_PREFILTER_EXACT_FINISH_INL_H_
#else
#define RIFFLE_LM_HEAD_PREFILTER_EXACT_FINISH_INL_H_
#endif

#include <algorithm>

#include "core/dot_operands-inl.h"
#include "lm_head/candidates-inl.h"
#include "lm_head/prefilter/prefilter_kernels.h"
#include "lm_head/tile_runner-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::PrefetchAt;
using core::HWY_NAMESPACE::Tag;
using select::HWY_NAMESPACE::FindBound;
using select::HWY_NAMESPACE::Pad;

// Stores the columns that may be among the row's k best, in ascending order. Returns their number.
inline size_t SelectColumns(const PrefilteredRow& task, int32_t* columns) {
  const SharedCandidates& shared = task.shared;
  const int64_t begin = task.row * shared.stride;
  const auto count = static_cast<size_t>(shared.counts[task.row]);
  const auto k = static_cast<size_t>(task.k);
  HWY_DASSERT(0 < k && k <= count);
  int32_t* lowers = shared.lowers + begin;
  Pad(Tag<int32_t>(), lowers, count);
  const float bound = core::KeyToFloat(
      FindBound(lowers, count, k, k + k / 16, core::kF32Format.lowest_key(), core::kF32Format).key,
      DType::kF32);
  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    if (!(shared.uppers[begin + static_cast<int64_t>(i)] < bound)) {
      columns[kept++] = shared.columns[begin + static_cast<int64_t>(i)];
    }
  }
  std::sort(columns, columns + kept);
  return kept;
}

HWY_INLINE void PrefetchColumns(const LinearArgs& args, const int32_t* columns, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    for (int64_t at = 0; at < args.column_bytes(); at += 64) {
      PrefetchAt(args.weight + columns[i] * args.weight_stride, at);
    }
  }
}

inline int64_t FinishRow(const LinearArgs& args, const PrefilteredRow& task, uint8_t* scratch) {
  HWY_DASSERT(0 <= task.row && task.row < args.rows && !task.shared.FellBack(task.row));
  LinearArgs one = args;
  one.rows = 1;
  one.x = static_cast<const uint8_t*>(args.x) + task.row * kKBlock * args.input_bytes();
  int32_t* columns = task.layout.candidates.At(scratch);
  FloatCandidates list{task.layout.sort.keys.At(scratch), task.layout.sort.columns.At(scratch), 0};
  const size_t count = SelectColumns(task, columns);
  TileRunner runner(one, task.layout.tile, scratch);
  constexpr size_t kColumns = kTile;
  PrefetchColumns(args, columns, std::min(count, kColumns));
  for (size_t i = 0; i < count; i += kColumns) {
    const size_t here = std::min(kColumns, count - i);
    PrefetchColumns(args, columns + i + here, std::min(kColumns, count - i - here));
    const float* logits = runner.RunColumns(columns + i, static_cast<int>(here));
    AppendReaching(logits, static_cast<int>(here), 0, core::kF32Format.lowest_key(), list);
    // AppendReaching stored positions in the tile; replace them by the columns of W.
    std::copy_n(columns + i, here, list.indices + list.count - here);
  }
  WriteBest(list, task.k, task.layout.sort, scratch, task.values, task.indices);
  return static_cast<int64_t>(count);
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
