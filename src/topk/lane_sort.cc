#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "topk/lane_sort.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "topk/lane_sort-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {

void LaneSortRow(const RowTask& task, const LaneOptions& options, uint8_t* scratch) {
  switch (task.dtype) {
    case DType::kF32:
      return LaneSort<int32_t>(task, options, kF32Format, scratch);
    case DType::kF16:
      return LaneSort<int16_t>(task, options, kF16Format, scratch);
    case DType::kBF16:
      return LaneSort<int16_t>(task, options, kBF16Format, scratch);
  }
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle {
HWY_EXPORT(LaneSortRow);

int64_t LastDepth(int64_t n, int64_t k, int64_t lanes) {
  return std::min(k, (n + lanes - 1) / lanes) + 1;
}

LaneLayout PlanLanes(const RowTask& task, const LaneOptions& options) {
  LaneLayout layout{};
  layout.last_depth = LastDepth(task.n, task.k, options.lanes);
  const size_t kept = static_cast<size_t>(layout.last_depth) * static_cast<size_t>(options.lanes);
  const auto place = [&layout](size_t count, size_t width) {
    const size_t begin = layout.bytes;
    layout.bytes += (count * width + 63) / 64 * 64;
    return begin;
  };
  const size_t element = SizeOf(task.dtype);
  layout.finish.keys = place(kept + kSlack, element);
  layout.finish.indices = place(kept + kSlack, sizeof(int32_t));
  layout.finish.ties = place(static_cast<size_t>(task.k) + kSlack, sizeof(int32_t));
  layout.finish.pairs = place(2 * kept, sizeof(uint64_t));
  layout.index_keys = place(kept + kSlack, sizeof(int32_t));
  layout.positions = place(kept + kSlack, sizeof(int32_t));
  layout.sorted_keys = place(kept + kSlack, element);
  layout.sorted_indices = place(kept + kSlack, sizeof(int32_t));
  return layout;
}

size_t LaneSortScratch(const RowTask& task, const LaneOptions& options) {
  return PlanLanes(task, options).bytes;
}

void RunLaneSort(const RowTask& task, const LaneOptions& options, uint8_t* scratch) {
  HWY_DYNAMIC_DISPATCH(LaneSortRow)(task, options, scratch);
}

}  // namespace riffle
#endif  // HWY_ONCE
