// The weight blocks of a GGUF file as integers and scales, exactly.
//
// Source of the formats: ggml-common.h and dequantize_row_* of ggml-quants.c.
#pragma once

#include <cstdint>

#include "engine/gguf/gguf.h"

namespace riffle::engine {

// 32 neighbouring weights of a row: weight i = scale(i / 16) * code[i] - minimum().
struct Block {
  int8_t code[32] = {};
  uint16_t d = 0;              // f16
  uint16_t dmin = 0;           // f16; of Q4_K
  int8_t factor[2] = {1, 1};   // of 16 weights each; of Q4_K and Q6_K
  uint8_t minimum_factor = 0;  // of Q4_K

  float scale(int half) const;
  float minimum() const;
};

// Whether UnpackRow takes the type: Q8_0, Q5_0, Q4_K, Q6_K.
bool CanUnpack(TensorType type);

// A row of `values` weights, a multiple of the type's block, into values / 32 blocks.
// Pre: CanUnpack(type); `row` has the bytes.
void UnpackRow(TensorType type, const uint8_t* row, int64_t values, Block* blocks);

// The same as f32, and rows of F32 tensors. The products and differences are those of ggml's
// dequantize_row_*, bit for bit.
void DequantizeRow(TensorType type, const uint8_t* row, int64_t values, float* out);

}  // namespace riffle::engine
