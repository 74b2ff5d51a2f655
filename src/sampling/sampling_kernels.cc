#include "sampling/sampling_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sampling/sampling_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include "core/dispatch.h"
#include "core/scratch_layout.h"
#include "sampling/estimate-inl.h"
#include "sampling/mask-inl.h"
#include "sampling/nucleus-inl.h"
#include "sampling/weights-inl.h"
#include "sampling/window-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {

// Calls f.template operator()<dtype>().
template <typename F>
HWY_INLINE auto ForDType(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kF32:
      return f.template operator()<DType::kF32>();
    case DType::kF16:
      return f.template operator()<DType::kF16>();
    default:
      break;
  }
  return f.template operator()<DType::kBF16>();
}

double SumRange(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end) {
  HWY_DASSERT(0 <= begin && begin < end);
  return ForDType(row.dtype, [&]<DType kDType>() {
    if (cut != nullptr) {
      return SumOf<kDType, true, false>(row, *cut, begin, end);
    }
    return IsPlain(row) ? SumOf<kDType, false, true>(row, {}, begin, end)
                        : SumOf<kDType, false, false>(row, {}, begin, end);
  });
}

void WeighRange(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end, float* out) {
  HWY_DASSERT(0 <= begin && begin < end);
  ForDType(row.dtype, [&]<DType kDType>() {
    return cut == nullptr ? StoreWeights<kDType, false>(row, {}, begin, end, out)
                          : StoreWeights<kDType, true>(row, *cut, begin, end, out);
  });
}

Nucleus FindNucleus(const WeightRow& row, int64_t n, double above, double mass, uint8_t* scratch) {
  HWY_DASSERT(n > 0 && reinterpret_cast<uintptr_t>(scratch) % core::kScratchAlignment == 0);
  return ForDType(row.dtype,
                  [&]<DType kDType>() { return NucleusOf<kDType>(row, n, above, mass, scratch); });
}

WindowEstimate EstimateWindow(const WeightRow& row, int64_t n, const WindowTarget& target,
                              uint8_t* scratch) {
  HWY_DASSERT(n >= kMinWindowed && row.unit == 1 && std::isfinite(row.scale) && row.scale > 0);
  HWY_DASSERT(target.mass >= 0 && (target.mass == 0 || std::isfinite(row.max)));
  HWY_DASSERT(reinterpret_cast<uintptr_t>(scratch) % core::kScratchAlignment == 0);
  return ForDType(row.dtype,
                  [&]<DType kDType>() { return EstimateRow<kDType>(row, n, target, scratch); });
}

WindowSums SumWindow(const WeightRow& row, const WindowEstimate& window, int64_t begin, int64_t end,
                     float* values) {
  HWY_DASSERT(0 <= begin && begin < end && window.low <= window.high && IsPlain(row));
  return ForDType(
      row.dtype, [&]<DType kDType>() { return WindowOf<kDType>(row, window, begin, end, values); });
}

WindowSums SumAndKeepTop(const WeightRow& row, float low, int64_t begin, int64_t end, float* values,
                         int32_t* columns) {
  HWY_DASSERT(0 <= begin && begin < end && IsPlain(row));
  HWY_DASSERT(low > -std::numeric_limits<float>::infinity());
  return ForDType(row.dtype, [&]<DType kDType>() {
    return SumAndKeepTopOf<kDType>(row, low, begin, end, values, columns);
  });
}

int64_t KeepTop(const WeightRow& row, float low, int64_t begin, int64_t end, float* values,
                int32_t* columns) {
  HWY_DASSERT(0 <= begin && begin < end);
  HWY_DASSERT(low > -std::numeric_limits<float>::infinity());
  return ForDType(row.dtype, [&]<DType kDType>() {
    return KeepTopOf<kDType>(row, low, begin, end, values, columns);
  });
}

int64_t FindEqual(const WeightRow& row, int64_t n, float value, int64_t place) {
  HWY_DASSERT(n > 0 && place >= 0);
  return ForDType(row.dtype, [&]<DType kDType>() { return EqualAt<kDType>(row, n, value, place); });
}

void MaskRange(const WeightRow& row, int64_t n, const Cut& cut, const Nucleus& nucleus, float* x) {
  HWY_DASSERT(n > 0 && row.dtype == DType::kF32);
  HWY_DASSERT(row.x == reinterpret_cast<const uint8_t*>(x));
  if (cut.min_weight > 0) {
    MaskRow<true>(row, n, cut, nucleus, x);
  } else {
    MaskRow<false>(row, n, cut, nucleus, x);
  }
}

const SamplingKernels* SamplingKernelsForTarget() {
  static constexpr SamplingKernels kKernels = {.sum_weights = SumRange,
                                               .weights = WeighRange,
                                               .find_nucleus = FindNucleus,
                                               .estimate_window = EstimateWindow,
                                               .sum_window = SumWindow,
                                               .sum_and_keep_top = SumAndKeepTop,
                                               .keep_top = KeepTop,
                                               .find_equal = FindEqual,
                                               .mask = MaskRange};
  return &kKernels;
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sampling {
HWY_EXPORT(SamplingKernelsForTarget);

const SamplingKernels& GetSamplingKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(SamplingKernelsForTarget))();
}

}  // namespace riffle::sampling
#endif  // HWY_ONCE
