// The one total order of the library: descending by value, NaN of either sign above +inf and all
// equal, -0 equal to +0, then the lower index first. Its reverse, for the smallest, is ascending by
// value and keeps the lower index first. Every algorithm, merge and target compares through Key;
// order-inl.h holds the same function on vectors.
#pragma once

#include <cstdint>
#include <limits>

#include "riffle/types.h"

namespace riffle::core {

// Elements are handled as signed integers of their own width: their bits, or the key made of them.
template <typename TI>
struct Format {
  TI inf;                 // the bits of +inf; f16 and bf16 differ in nothing else here
  bool smallest = false;  // the reverse order of values, for which keys are negated

  constexpr TI nan_key() const { return static_cast<TI>(smallest ? -inf - 1 : inf + 1); }
  constexpr TI top_key() const { return static_cast<TI>(inf + 1); }  // no key is higher
  constexpr TI lowest_key() const { return static_cast<TI>(smallest ? -inf - 1 : -inf); }
  constexpr TI minus_inf() const { return static_cast<TI>(inf | std::numeric_limits<TI>::min()); }
  // The sign bit where keys are negated.
  constexpr TI flip() const { return smallest ? std::numeric_limits<TI>::min() : TI{0}; }
};

constexpr Format<int32_t> kF32Format{0x7f800000};
constexpr Format<int16_t> kF16Format{0x7c00};
constexpr Format<int16_t> kBF16Format{0x7f80};

// The key of an element: signed integers in the order of the values, equal for equal values.
template <typename TI>
constexpr TI Key(TI bits, Format<TI> format) {
  const TI magnitude = static_cast<TI>(bits & std::numeric_limits<TI>::max());
  if (magnitude > format.inf) {
    return format.nan_key();
  }
  return (bits ^ format.flip()) < 0 ? static_cast<TI>(-magnitude) : magnitude;
}

// The bits of an element as an f32.
inline float ToFloat(uint16_t bits, DType dtype) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  if (dtype == DType::kF16) {
    const uint32_t sign = wide & 0x80000000u;
    const uint32_t exponent = (bits >> 10) & 31;
    const uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in f32
      const float value = static_cast<float>(mantissa) * 0x1p-24f;
      return sign != 0 ? -value : value;
    }
    wide = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (mantissa << 13);
  }
  return __builtin_bit_cast(float, wide);
}

// The value of a key: its own inverse but for the signs of zeros and NaNs.
inline float KeyToFloat(int64_t key, DType dtype) {
  const auto bits = static_cast<uint32_t>(key < 0 ? -key : key);
  const float magnitude = dtype == DType::kF32 ? __builtin_bit_cast(float, bits)
                                               : ToFloat(static_cast<uint16_t>(bits), dtype);
  return key < 0 ? -magnitude : magnitude;
}

}  // namespace riffle::core
