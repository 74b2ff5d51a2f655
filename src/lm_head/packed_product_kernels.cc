#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/packed_product_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"

#include "lm_head/packed_product-inl.h"
#include "lm_head/product_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {

const PackedProductKernels* PackedProductKernelsForTarget() {
  static constexpr PackedProductKernels kKernels = {
      .multiply = ForWeightSources([]<class Source> { return MultiplyPacked<Source>; })};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(PackedProductKernelsForTarget);

const PackedProductKernels& GetPackedProductKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(PackedProductKernelsForTarget))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
