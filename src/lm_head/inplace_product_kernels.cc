#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/inplace_product_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"

#include "lm_head/inplace_product-inl.h"
#include "lm_head/product_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {

const InplaceProductKernels* InplaceProductKernelsForTarget() {
  static constexpr InplaceProductKernels kKernels = {
      .multiply = ForWeightSources([]<class Source> { return MultiplyInplace<Source>; })};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(InplaceProductKernelsForTarget);

const InplaceProductKernels& GetInplaceProductKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(InplaceProductKernelsForTarget))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
