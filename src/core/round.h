// f32 to the 16-bit formats, to the nearest, ties to even; subnormals kept, NaNs quiet. The same
// bits on every machine: the native conversions differ (x86's to bf16 flushes subnormals).
// round-inl.h is the same on vectors.
#pragma once

#include <cstdint>

#include "riffle/types.h"

namespace riffle {

inline uint16_t RoundToBF16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>(bits >> 16 | 0x40);
  }
  // Below one half of the last place that stays, plus its lowest bit: ties go to even.
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t RoundToF16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00 | (magnitude >> 13 & 0x1ff);
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14, the least normal f16: adding 0.5 leaves 2^-24, the least subnormal, as the last
    // place of the sum, so the addition rounds.
    const float sum = __builtin_bit_cast(float, magnitude) + 0.5f;
    half = __builtin_bit_cast(uint32_t, sum) - 0x3f000000u;
  } else {
    // The exponent's bias falls from 127 to 15; a carry out of the largest f16 gives infinity.
    const uint32_t rounded = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
    half = rounded >> 13 < 0x7c00 ? rounded >> 13 : 0x7c00;
  }
  return static_cast<uint16_t>(sign | half);
}

inline uint16_t RoundTo16(float value, DType dtype) {
  return dtype == DType::kF16 ? RoundToF16(value) : RoundToBF16(value);
}

}  // namespace riffle
