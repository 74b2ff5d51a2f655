#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "topk/small_int_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"
#include "topk/kernel_table-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {

const TopKKernels* GetInt8() {
  return &KernelTable<core::IntegerFormat<int8_t, int16_t>>::kKernels;
}
const TopKKernels* GetInt16() { return &KernelTable<core::IntegerFormat<int16_t>>::kKernels; }

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::topk {
HWY_EXPORT(GetInt8);
HWY_EXPORT(GetInt16);

const TopKKernels& Int8Kernels() { return *core::ForTarget(HWY_DISPATCH_TABLE(GetInt8))(); }
const TopKKernels& Int16Kernels() { return *core::ForTarget(HWY_DISPATCH_TABLE(GetInt16))(); }

}  // namespace riffle::topk
#endif  // HWY_ONCE
