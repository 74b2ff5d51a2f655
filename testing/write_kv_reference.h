// What WriteKv must write, element by element and block by block: slow, scalar, and sharing no code
// with src/kv_cache.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/attention.h"
#include "riffle/types.h"

namespace riffle::test {

// The value of a code of f32, f16, bf16, e4m3, e5m2, e8m0 or i8, from its definition.
double DecodeCode(DType dtype, uint32_t code);

// The code of the nearest element, ties to the even code. What overflows becomes infinite in f16,
// bf16 and e5m2, the largest element in e4m3 and i8; NaN becomes some NaN, in i8 0.
uint32_t NearestCode(DType dtype, double value);

// Whether two codes are the same or both NaN.
bool SameCode(DType dtype, uint32_t a, uint32_t b);

// The code of a scale: the nearest, but for e8m0 the smallest that is not below the value.
uint32_t ScaleCode(DType dtype, float value);

// Appends 32 elements to `out`, quantised as the format's reference does. Pre: all are finite, and
// not so small that the reciprocal of their scale overflows.
void AppendBlock(KvFormat format, const float* x, std::vector<uint8_t>* out);

// What a row of a pool stands for: elements times their scales, or blocks.
std::vector<double> DecodeRow(const PagedKv& kv, int64_t page, int64_t token, int64_t head);

}  // namespace riffle::test
