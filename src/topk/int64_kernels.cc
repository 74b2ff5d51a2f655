#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "topk/int64_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"
#include "topk/kernel_table-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {

const TopKKernels* GetInt64() { return &KernelTable<core::IntegerFormat<int64_t>>::kKernels; }

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::topk {
HWY_EXPORT(GetInt64);

const TopKKernels& Int64Kernels() { return *core::ForTarget(HWY_DISPATCH_TABLE(GetInt64))(); }

}  // namespace riffle::topk
#endif  // HWY_ONCE
