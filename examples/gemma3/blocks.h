// The weight blocks of a GGUF file as integers and scales, exactly.
//
// Source of the formats: ggml-common.h and dequantize_row_* of ggml-quants.c.
#pragma once

#include <cstdint>

#include "examples/gemma3/gguf.h"

namespace riffle::gemma3 {

// 32 neighbouring weights of a row: weight i = scale[i / 16] * (code[i] - 128) - minimum.
struct Block {
  uint8_t code[32];
  float scale[2];
  float minimum;
};

// Whether UnpackRow takes the type: Q8_0, Q5_0, Q4_K, Q6_K.
bool CanUnpack(TensorType type);

// A row of `values` weights, a multiple of the type's block, into values / 32 blocks.
// Pre: CanUnpack(type); `row` has the bytes.
void UnpackRow(TensorType type, const uint8_t* row, int64_t values, Block* blocks);

// The same as f32, and rows of F32 tensors. The products and differences are those of ggml's
// dequantize_row_*, bit for bit.
void DequantizeRow(TensorType type, const uint8_t* row, int64_t values, float* out);

float FromF16(uint16_t bits);

}  // namespace riffle::gemma3
