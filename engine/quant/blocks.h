// Unpacks the weight blocks of a GGUF file to integers and scales, exactly.
//
// Source of the formats: ggml-common.h and dequantize_row_* of ggml-quants.c.
#pragma once

#include <cstdint>

#include "engine/gguf/gguf.h"

namespace riffle::engine {

// 32 neighbouring weights of a row: weight i = scale(i / 16) * code[i] - minimum(i / 16).
struct Block {
  int8_t code[32] = {};
  uint16_t d = 0;                      // f16
  uint16_t dmin = 0;                   // f16
  int8_t factor[2] = {1, 1};           // for 16 weights each
  uint8_t minimum_factor[2] = {0, 0};  // likewise

  float scale(int half) const;
  float minimum(int half) const;
};

// Whether the type has blocks: all but F32, F16 and BF16.
bool IsQuantised(TensorType type);

// Unpacks a row of `values` weights, a multiple of the type's block, into values / 32 blocks. Pre:
// IsQuantised(type); `row` has the bytes.
void UnpackRow(TensorType type, const uint8_t* row, int64_t values, Block* blocks);

// Converts a row of a tensor of any type to f32. Products and differences are those of ggml's
// dequantize_row_*, bit for bit.
void DequantizeRow(TensorType type, const uint8_t* row, int64_t values, float* out);

}  // namespace riffle::engine
