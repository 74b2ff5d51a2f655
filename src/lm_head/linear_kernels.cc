#include "lm_head/linear_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/linear_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"

#include <cstring>

#include "lm_head/tile_runner-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {

void StoreTiles(const LinearArgs& args, int64_t begin, int64_t end, const StoreTask& task,
                uint8_t* scratch) {
  TileRunner runner(args, task.layout, scratch);
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* logits = runner.Run(tile);
    for (int64_t row = 0; row < args.rows; ++row) {
      std::memcpy(task.y + row * task.row_stride + tile * kTile, logits + row * kTile,
                  static_cast<size_t>(runner.columns()) * sizeof(float));
    }
  }
}

const LinearKernels* LinearKernelsForTarget() {
  static constexpr LinearKernels kKernels = {.store_tiles = StoreTiles};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(LinearKernelsForTarget);

const LinearKernels& GetLinearKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(LinearKernelsForTarget))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
