#include "lm_head/prefilter/prefilter_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/prefilter/prefilter_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"

#include <limits>

#include "lm_head/prefilter/candidate_bounds-inl.h"
#include "lm_head/prefilter/exact_finish-inl.h"
#include "lm_head/prefilter/quantize-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Appends a tile's candidates to the row's list. If there is no room for them, the row falls back.
void SearchRow(const PrefilterChunk& task, const TileBounds& bounds, int64_t tile, int64_t row,
               uint8_t* scratch) {
  const auto capacity = static_cast<size_t>(task.plan.capacity);
  CandidateBounds list = CandidatesOf(task, row, scratch);
  if (list.count + kTile > capacity) {
    TightenAndPrune(task, row, list);
    if (list.count + kTile > capacity) {
      return task.shared.FallBack(row);
    }
  }
  list.Append(bounds, row, static_cast<int32_t>(tile * kTile), BoundOf(task.shared, row));
  task.layout.counts.At(scratch)[row] = static_cast<int64_t>(list.count);
}

void SearchTiles(const PrefilterArgs& args, int64_t begin, int64_t end, const PrefilterChunk& task,
                 uint8_t* scratch) {
  HWY_DASSERT(args.linear.rows <= task.plan.rows);
  TileBounds bounds(args, task.layout.tile, scratch);
  const int64_t rows = args.linear.rows;
  std::fill_n(task.layout.counts.At(scratch), rows, 0);
  for (int64_t tile = begin; tile < end; ++tile) {
    if (task.shared.remaining->load(std::memory_order_relaxed) == 0) {
      return;
    }
    bounds.Run(tile);
    for (int64_t row = 0; row < rows; ++row) {
      if (!task.shared.FellBack(row)) {
        SearchRow(task, bounds, tile, row, scratch);
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    // Chunks that end at the same time start with different rows, so they do not wait for one
    // another.
    const int64_t row = (i + task.chunk) % rows;
    if (!task.shared.FellBack(row)) {
      CandidateBounds list = CandidatesOf(task, row, scratch);
      MergeIntoShared(task, row, list);
    }
  }
}

void WriteTileBounds(const PrefilterArgs& args, int64_t tile, const BoundsScratch& layout,
                     uint8_t* scratch, float* lower, float* upper) {
  const LaneF32 df;
  TileBounds bounds(args, layout, scratch);
  bounds.Run(tile);
  for (int64_t row = 0; row < args.linear.rows; ++row) {
    for (int i = 0; i < kTile; i += kLanes) {
      VecF32 low;
      VecF32 high;
      bounds.Bounds(row, i, low, high);
      hn::StoreU(low, df, lower + row * kTile + i);
      hn::StoreU(high, df, upper + row * kTile + i);
    }
  }
}

const PrefilterKernels* PrefilterKernelsForTarget() {
  // Reading W in place pays with vectors of 64 bytes. With 16 bytes, finding the scale of each lane
  // takes more instructions than the products.
  constexpr int64_t kMinRows = !Int8Dot::kNative    ? std::numeric_limits<int64_t>::max()
                               : HWY_CAP_GE512 != 0 ? 1
                                                    : kInplaceRows + 1;
  static constexpr PrefilterKernels kKernels = {.min_rows = kMinRows,
                                                .quantize_row = QuantizeRow,
                                                .search_tiles = SearchTiles,
                                                .finish_row = FinishRow,
                                                .tile_bounds = WriteTileBounds};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(PrefilterKernelsForTarget);

const PrefilterKernels& GetPrefilterKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(PrefilterKernelsForTarget))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
