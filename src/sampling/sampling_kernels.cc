#include "sampling/sampling_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sampling/sampling_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include "core/dispatch.h"
#include "sampling/nucleus-inl.h"
#include "sampling/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sampling::HWY_NAMESPACE {

// f.template operator()<dtype>().
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

double SumWeightsImpl(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end) {
  return ForDType(row.dtype, [&]<DType kDType>() {
    return cut == nullptr ? SumOf<kDType, false>(row, {}, begin, end)
                          : SumOf<kDType, true>(row, *cut, begin, end);
  });
}

void WeightsImpl(const WeightRow& row, const Cut* cut, int64_t begin, int64_t end, float* out) {
  ForDType(row.dtype, [&]<DType kDType>() {
    return cut == nullptr ? StoreWeights<kDType, false>(row, {}, begin, end, out)
                          : StoreWeights<kDType, true>(row, *cut, begin, end, out);
  });
}

Nucleus FindNucleusImpl(const WeightRow& row, int64_t n, double mass, uint8_t* scratch) {
  return ForDType(row.dtype,
                  [&]<DType kDType>() { return NucleusOf<kDType>(row, n, mass, scratch); });
}

int64_t FindEqualImpl(const WeightRow& row, int64_t n, float value, int64_t place) {
  return ForDType(row.dtype, [&]<DType kDType>() { return EqualAt<kDType>(row, n, value, place); });
}

}  // namespace riffle::sampling::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sampling {
HWY_EXPORT(SumWeightsImpl);
HWY_EXPORT(WeightsImpl);
HWY_EXPORT(FindNucleusImpl);
HWY_EXPORT(FindEqualImpl);

double SumWeights(const WeightRow& row, int64_t begin, int64_t end) {
  return core::ForTarget(HWY_DISPATCH_TABLE(SumWeightsImpl))(row, nullptr, begin, end);
}

double SumKeptWeights(const WeightRow& row, const Cut& cut, int64_t begin, int64_t end) {
  return core::ForTarget(HWY_DISPATCH_TABLE(SumWeightsImpl))(row, &cut, begin, end);
}

void Weights(const WeightRow& row, int64_t begin, int64_t end, float* out) {
  core::ForTarget(HWY_DISPATCH_TABLE(WeightsImpl))(row, nullptr, begin, end, out);
}

void KeptWeights(const WeightRow& row, const Cut& cut, int64_t begin, int64_t end, float* out) {
  core::ForTarget(HWY_DISPATCH_TABLE(WeightsImpl))(row, &cut, begin, end, out);
}

Nucleus FindNucleus(const WeightRow& row, int64_t n, double mass, uint8_t* scratch) {
  return core::ForTarget(HWY_DISPATCH_TABLE(FindNucleusImpl))(row, n, mass, scratch);
}

int64_t FindEqual(const WeightRow& row, int64_t n, float value, int64_t place) {
  return core::ForTarget(HWY_DISPATCH_TABLE(FindEqualImpl))(row, n, value, place);
}

}  // namespace riffle::sampling
#endif  // HWY_ONCE
