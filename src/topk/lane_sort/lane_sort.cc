#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "topk/lane_sort/lane_sort.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"
#include "topk/lane_sort/lane_sort-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {

void LaneSortRow(const RowTask& task, const LaneOptions& options, uint8_t* scratch) {
  switch (task.dtype) {
    case DType::kF32:
      return LaneSort<int32_t>(task, options, core::kF32Format, scratch);
    case DType::kF16:
      return LaneSort<int16_t>(task, options, core::kF16Format, scratch);
    case DType::kBF16:
      return LaneSort<int16_t>(task, options, core::kBF16Format, scratch);
    default:
      HWY_DASSERT(false);  // CheckOptions rejects the other dtypes
  }
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::topk {
HWY_EXPORT(LaneSortRow);

void RunLaneSort(const RowTask& task, const LaneOptions& options, uint8_t* scratch) {
  core::ForTarget(HWY_DISPATCH_TABLE(LaneSortRow))(task, options, scratch);
}

}  // namespace riffle::topk
#endif  // HWY_ONCE
