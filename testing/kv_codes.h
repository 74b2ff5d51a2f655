// Rows of keys and values in every code, by scalar arithmetic in double that shares no code with
// src/attention.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/attention.h"

namespace riffle::test {

// Which elements share a scale.
enum class Scaling : uint8_t { kNone, kTensor, kHead, kRow, kGroups };

// How a pool is coded.
struct KvCoding {
  DType dtype = DType::kF32;
  KvFormat format = KvFormat::kPlain;
  Scaling scaling = Scaling::kNone;
  int group = 32;  // elements per scale with kGroups
  DType scale_dtype = DType::kF32;
  float divisor = 1.0f;
};

// The value of a code of an 8-bit float: kE4M3 (finite only), kE5M2 or kE8M0.
double DecodeFloat8(DType dtype, uint8_t code);

// The value of the scale at `from`.
double DecodeScale(DType dtype, const uint8_t* from);
// Writes `scale` to `to` as a number of the dtype and returns the number written. e8m0 gets the
// next power of two above `scale` (twice `scale` if that is one itself), or NaN if `scale` is not
// finite. f32 rounds to nearest; f16 and bf16 then drop the digits of the f32 that they lack.
double EncodeScale(DType dtype, double scale, uint8_t* to);

// The values of a row's elements. For a coding with scales, scale(i) is the scale of element i,
// with its divisor.
template <typename Scale>
std::vector<double> DecodeRow(const KvCoding& coding, const uint8_t* row, int dim,
                              const Scale& scale);

// Element i of a row without its scale; for a block format with its block's scale and offset.
double DecodeElement(const KvCoding& coding, const uint8_t* row, int i);

// Writes x as element i of a row of a dtype: the nearest code to x / scale.
void EncodeElement(DType dtype, double x, uint8_t* row, int i);

// Writes 32 elements as a block of a format, with a scale made for them.
void EncodeBlock(KvFormat format, const double* x, uint8_t* block);

// The largest magnitude of a code, from which scales are made.
double LargestCode(DType dtype);

template <typename Scale>
std::vector<double> DecodeRow(const KvCoding& coding, const uint8_t* row, int dim,
                              const Scale& scale) {
  std::vector<double> x(static_cast<size_t>(dim));
  for (int i = 0; i < dim; ++i) {
    x[static_cast<size_t>(i)] = DecodeElement(coding, row, i) * scale(i);
  }
  return x;
}

}  // namespace riffle::test
