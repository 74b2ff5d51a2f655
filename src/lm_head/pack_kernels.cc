#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/pack_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"

#include "core/bf16_dot.h"
#include "lm_head/pack_weights-inl.h"
#include "lm_head/pack_x-inl.h"
#include "lm_head/product_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {

const PackKernels* PackKernelsForTarget() {
  static constexpr PackKernels kKernels = {
      .bf16_pairs = RIFFLE_BF16_DOT,
      .x = PackRow,
      .load_scales = LoadScales,
      .weights = ForWeightSources([]<class Source> { return PackWeights<Source>; }),
      .transposed = {PackTransposed<F32Source<DType::kF32>>, PackTransposed<F32Source<DType::kF16>>,
                     PackTransposed<F32Source<DType::kBF16>>, nullptr,
#if RIFFLE_BF16_DOT
                     PackTransposed<BF16PairSource>, nullptr
#endif
      }};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(PackKernelsForTarget);

const PackKernels& GetPackKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(PackKernelsForTarget))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
