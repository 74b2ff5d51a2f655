#include "attention/attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/attention_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include "attention/results-inl.h"
#include "attention/roofline-inl.h"
#include "attention/work_item_runner-inl.h"
#include "core/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// No arithmetic needs more scratch than F32Math.
size_t CountScratch(const AttentionArgs& args, const Plan& plan) {
  return WorkItemScratch<F32Math>().Place(args, plan, nullptr);
}

const AttentionKernels* AttentionKernelsForTarget() {
  static constexpr AttentionKernels kKernels = {.scratch_bytes = CountScratch,
                                                .run_items = RunItems<F32Math>,
                                                .merge_divided_item = MergeDividedItem,
                                                .read_items = ReadItems,
                                                .sum_weighted = SumWeighted,
                                                .run_dots = RunDots};
  return &kKernels;
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::attention {
HWY_EXPORT(AttentionKernelsForTarget);

const AttentionKernels& GetAttentionKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(AttentionKernelsForTarget))();
}

RunItemsKernel ChooseRunItems(const AttentionArgs& args) {
  const bool rounded = args.q_dtype == DType::kBF16 || args.bf16_products;
  if (rounded) {
    if (const RunItemsKernel run_items = GetBF16RunItems(args.keys.code, args.values.code)) {
      return run_items;
    }
  }
  return GetAttentionKernels().run_items;
}

}  // namespace riffle::attention
#endif  // HWY_ONCE
