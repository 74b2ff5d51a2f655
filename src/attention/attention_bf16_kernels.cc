// Runs work items by bf16 dot products. Not in attention_kernels.cc, so that both files compile
// quickly, and in parallel.
#include "attention/attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/attention_bf16_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include "attention/work_item_runner-inl.h"
#include "core/bf16_dot.h"
#include "core/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

RunItemsKernel BF16RunItemsForTarget([[maybe_unused]] RowCode keys,
                                     [[maybe_unused]] RowCode values) {
#if RIFFLE_BF16_DOT
  if (DecodesToBF16(keys) && DecodesToBF16(values)) {
    return RunItems<BF16Math>;
  }
#endif
  return nullptr;
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::attention {
HWY_EXPORT(BF16RunItemsForTarget);

RunItemsKernel GetBF16RunItems(RowCode keys, RowCode values) {
  return core::ForTarget(HWY_DISPATCH_TABLE(BF16RunItemsForTarget))(keys, values);
}

}  // namespace riffle::attention
#endif  // HWY_ONCE
