#include "lm_head/plain_topk_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/plain_topk_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"

#include <algorithm>

#include "core/atomic_max.h"
#include "lm_head/candidates-inl.h"
#include "lm_head/tile_runner-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {

// A row's list in a thread's scratch.
HWY_INLINE FloatCandidates ListOf(const ChunkTask& task, int64_t row, uint8_t* scratch) {
  return {task.lists.keys.At(scratch) + row * task.lists.stride,
          task.lists.columns.At(scratch) + row * task.lists.stride,
          static_cast<size_t>(task.lists.counts.At(scratch)[row])};
}

// Prunes a list to the limit of a chunk, and raises the row's bound to the key that Prune returns.
HWY_INLINE void PruneToLimit(const ChunkTask& task, int64_t row, FloatCandidates& list) {
  const auto limit = static_cast<size_t>(task.plan.limit);
  if (list.count > limit) {
    core::AtomicMax(task.kept.bounds[row], Prune(list, static_cast<size_t>(task.k), limit));
  }
}

// Copies a row's list to shared memory.
HWY_INLINE void KeepList(const ChunkTask& task, int64_t rows, int64_t row,
                         const FloatCandidates& list) {
  const int64_t at = task.chunk * rows + row;
  std::copy_n(list.keys, list.count, task.kept.keys + at * task.plan.limit);
  std::copy_n(list.indices, list.count, task.kept.columns + at * task.plan.limit);
  task.kept.counts[at] = static_cast<int64_t>(list.count);
}

void SearchTiles(const LinearArgs& args, int64_t begin, int64_t end, const ChunkTask& task,
                 uint8_t* scratch) {
  HWY_DASSERT(args.rows <= task.plan.rows);
  TileRunner runner(args, task.tile, scratch);
  int64_t* counts = task.lists.counts.At(scratch);
  std::fill_n(counts, args.rows, 0);
  const auto capacity = static_cast<size_t>(task.plan.capacity);
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* logits = runner.Run(tile);
    for (int64_t row = 0; row < args.rows; ++row) {
      FloatCandidates list = ListOf(task, row, scratch);
      if (list.count + kTile > capacity) {
        PruneToLimit(task, row, list);
      }
      AppendReaching(logits + row * kTile, runner.columns(), static_cast<int32_t>(tile * kTile),
                     task.kept.bounds[row].load(std::memory_order_relaxed), list);
      HWY_DASSERT(list.count <= capacity);
      counts[row] = static_cast<int64_t>(list.count);
    }
  }
  for (int64_t row = 0; row < args.rows; ++row) {
    FloatCandidates list = ListOf(task, row, scratch);
    PruneToLimit(task, row, list);
    KeepList(task, args.rows, row, list);
  }
}

void FinishRow(const FinishTask& task, uint8_t* scratch) {
  FloatCandidates list{task.layout.keys.At(scratch), task.layout.columns.At(scratch), 0};
  for (int64_t chunk = 0; chunk < task.chunks; ++chunk) {
    const int64_t at = chunk * task.rows + task.row;
    const auto count = static_cast<size_t>(task.kept.counts[at]);
    std::copy_n(task.kept.keys + at * task.limit, count, list.keys + list.count);
    std::copy_n(task.kept.columns + at * task.limit, count, list.indices + list.count);
    list.count += count;
  }
  WriteBest(list, task.k, task.layout, scratch, task.values, task.indices);
}

const PlainTopKKernels* PlainTopKKernelsForTarget() {
  static constexpr PlainTopKKernels kKernels = {.search_tiles = SearchTiles,
                                                .finish_row = FinishRow};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(PlainTopKKernelsForTarget);

const PlainTopKKernels& GetPlainTopKKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(PlainTopKKernelsForTarget))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
