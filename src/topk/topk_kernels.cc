// The kernels of each dtype. They are instantiated in one file per width, to compile in parallel.
#include "topk/topk_kernels.h"

namespace riffle::topk {

const TopKKernels& Kernels(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return F32Kernels();
    case DType::kF16:
    case DType::kBF16:
      return HalfKernels();
    case DType::kF64:
      return F64Kernels();
    case DType::kI8:
    case DType::kU8:
      return Int8Kernels();
    case DType::kI16:
    case DType::kU16:
      return Int16Kernels();
    case DType::kI32:
    case DType::kU32:
      return Int32Kernels();
    default:  // the entry point has rejected all others but the 64-bit integers
      return Int64Kernels();
  }
}

}  // namespace riffle::topk
