#include "lm_head/product.h"

#include "lm_head/product_kernels.h"

namespace riffle::lm_head {
namespace {

WeightSource SourceOf(WeightFormat format, bool bf16_pairs) {
  switch (format) {
    case WeightFormat::kF32:
      return WeightSource::kF32;
    case WeightFormat::kF16:
      return WeightSource::kF16;
    case WeightFormat::kBF16:
      return bf16_pairs ? WeightSource::kBF16Pairs : WeightSource::kBF16;
    case WeightFormat::kQ8_0:
      break;
  }
  return bf16_pairs ? WeightSource::kQ8_0Pairs : WeightSource::kQ8_0;
}

}  // namespace

ProductFunctions ChooseProduct(WeightFormat format, bool bf16_pairs) {
  HWY_DASSERT(!bf16_pairs || HasBF16Pairs());
  const auto source = static_cast<size_t>(SourceOf(format, bf16_pairs));
  const PackKernels& pack = GetPackKernels();
  const PackedProductKernels& packed = GetPackedProductKernels();
  const bool q8 = format == WeightFormat::kQ8_0;
  ProductFunctions functions;
  functions.load_scales = q8 ? pack.load_scales : nullptr;
  functions.pack = pack.weights[source];
  functions.pack_transposed = pack.transposed[source];
  functions.multiply_packed = packed.multiply[source];
  functions.multiply_inplace = GetInplaceProductKernels().multiply[source];
  return functions;
}

bool HasBF16Pairs() { return GetPackKernels().bf16_pairs; }

}  // namespace riffle::lm_head
