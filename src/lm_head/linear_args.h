// What the entry points of the linear layer pass to the kernels: checked, planned, and the same for
// every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/element.h"
#include "lm_head/product.h"
#include "riffle/linear_topk.h"

namespace riffle::lm_head {

inline constexpr uint32_t kCanonicalNaN = 0x7fc00000u;

inline float BiasAt(const BiasView& bias, int64_t column) {
  const auto bytes = static_cast<int64_t>(SizeOf(bias.dtype));
  return core::LoadElement(bias.dtype, static_cast<const uint8_t*>(bias.data) + column * bytes);
}

// Rows of x that are multiplied by W in one pass, and W.
struct LinearArgs {
  // Packed operands of the rows: [k_blocks()][packed_rows][kKBlock] inputs, f32 or (bf16_pairs)
  // bf16.
  const void* x = nullptr;
  int64_t rows = 0;
  int64_t packed_rows = 0;  // of the buffer; >= rows, because `x` may point to some of its rows
  int64_t d = 0;
  bool bf16_pairs = false;

  const uint8_t* weight = nullptr;
  WeightFormat format = WeightFormat::kF32;
  bool transposed = false;    // the columns of y, not the inputs, are contiguous in W
  int64_t weight_stride = 0;  // bytes from one row (transposed: column) of W to the next
  int64_t vocab = 0;
  BiasView bias;
  ProductFunctions product;  // for this format and these operands

  int64_t k_blocks() const { return (d + kKBlock - 1) / kKBlock; }
  int64_t input_bytes() const { return bf16_pairs ? 2 : 4; }  // of an input in `x`
  int64_t element_bytes() const { return format == WeightFormat::kF32 ? 4 : 2; }  // not of Q8_0
  int64_t column_bytes() const {
    return format == WeightFormat::kQ8_0 ? d / kQ8Block * kQ8BlockBytes : d * element_bytes();
  }
};

}  // namespace riffle::lm_head
