#include "sparse/attend_args.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/attend_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"
#include "sparse/attend-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {

template <class Words, bool kPairs>
void AttendHeads(const AttendArgs& args, const AttendItem& item, const AttendScratch& layout,
                 uint8_t* scratch) {
  Attend<Words, kPairs>(args, item, layout, scratch).Run();
}

const AttendKernels* AttendKernelsForTarget(bool bf16) {
  static constexpr AttendKernels kF32 = {AttendHeads<F32Words, false>};
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
  static constexpr AttendKernels kBF16 = {AttendHeads<BF16Words, true>};
  return bf16 ? &kBF16 : &kF32;
#else
  return bf16 ? nullptr : &kF32;
#endif
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sparse {
HWY_EXPORT(AttendKernelsForTarget);

bool HasBF16Attend() {
  return (*core::ForTarget(HWY_DISPATCH_TABLE(AttendKernelsForTarget)))(true) != nullptr;
}

const AttendKernels& GetAttendKernels(bool bf16) {
  const AttendKernels* kernels =
      (*core::ForTarget(HWY_DISPATCH_TABLE(AttendKernelsForTarget)))(bf16);
  HWY_DASSERT(kernels != nullptr);
  return *kernels;
}

}  // namespace riffle::sparse
#endif  // HWY_ONCE
