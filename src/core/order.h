// The one total order of the library: descending by value, NaN of either sign above +inf and all
// equal, -0 equal to +0, then the lower index first. Its reverse, for the smallest, is ascending by
// value and keeps the lower index first. Every algorithm, merge and target compares through Key;
// order-inl.h holds the same function on vectors.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "riffle/types.h"

namespace riffle::core {

// What the elements of a dtype are and how they become keys. `Element` is the signed integer that
// holds an element's bits, `Key` the signed integer that is compared: as wide, except that bytes
// have 16-bit keys.
//
// Floating-point elements.
template <typename TI>
struct Format {
  using Element = TI;
  using Key = TI;
  static constexpr bool kInteger = false;

  TI inf;                 // the bits of +inf; f16 and bf16 differ in nothing else here
  bool smallest = false;  // the reverse order of values, for which keys are negated

  static constexpr Format Of(DType dtype, bool smallest);

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
constexpr Format<int64_t> kF64Format{0x7ff0000000000000};

template <typename TI>
constexpr Format<TI> Format<TI>::Of(DType dtype, bool smallest) {
  Format format{};
  if constexpr (sizeof(TI) == 8) {
    format = kF64Format;
  } else if constexpr (sizeof(TI) == 4) {
    format = kF32Format;
  } else {
    format = dtype == DType::kF16 ? kF16Format : kBF16Format;
  }
  format.smallest = smallest;
  return format;
}

// Integer elements. Each integer of their width is the key of an element: unlike above, there is
// none below the lowest key.
template <typename TElement, typename TKey = TElement>
struct IntegerFormat {
  using Element = TElement;
  using Key = TKey;
  static constexpr bool kInteger = true;

  // key = bits ^ flip: the sign bit for unsigned elements, all bits for the reverse order.
  TElement flip;

  static constexpr IntegerFormat Of(DType dtype, bool smallest) {
    constexpr TElement kSign = std::numeric_limits<TElement>::min();
    const TElement sign = IsUnsigned(dtype) ? kSign : TElement{0};
    return {static_cast<TElement>(smallest ? ~sign : sign)};
  }

  constexpr TKey top_key() const { return std::numeric_limits<TElement>::max(); }
  constexpr TKey lowest_key() const { return std::numeric_limits<TElement>::min(); }
};

// Bytes of a key.
constexpr size_t KeyBytes(DType dtype) { return SizeOf(dtype) == 1 ? 2 : SizeOf(dtype); }

// The key of an element: signed integers in the order of the values, equal for equal values.
template <typename TI>
constexpr TI Key(TI bits, Format<TI> format) {
  const TI magnitude = static_cast<TI>(bits & std::numeric_limits<TI>::max());
  if (magnitude > format.inf) {
    return format.nan_key();
  }
  return (bits ^ format.flip()) < 0 ? static_cast<TI>(-magnitude) : magnitude;
}
template <typename TElement, typename TKey>
constexpr TKey Key(TElement bits, IntegerFormat<TElement, TKey> format) {
  return static_cast<TElement>(bits ^ format.flip);
}

// The value of an f16 or bf16 element.
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

// The value whose key this is. Key loses nothing but the signs of zeros and NaNs.
inline float KeyToFloat(int64_t key, DType dtype) {
  const auto bits = static_cast<uint32_t>(key < 0 ? -key : key);
  const float magnitude = dtype == DType::kF32 ? __builtin_bit_cast(float, bits)
                                               : ToFloat(static_cast<uint16_t>(bits), dtype);
  return key < 0 ? -magnitude : magnitude;
}

// The value of a key as a double, which rounds integers beyond 2^53.
template <typename TI>
double KeyToDouble(TI key, Format<TI> format, DType dtype) {
  const int64_t ordered = format.smallest ? -int64_t{key} : int64_t{key};
  if constexpr (sizeof(TI) == 8) {
    const double magnitude = __builtin_bit_cast(double, ordered < 0 ? -ordered : ordered);
    return ordered < 0 ? -magnitude : magnitude;
  } else {
    return KeyToFloat(ordered, dtype);
  }
}
template <typename TElement, typename TKey>
double KeyToDouble(TKey key, IntegerFormat<TElement, TKey> format, DType dtype) {
  const auto bits = static_cast<TElement>(key ^ format.flip);
  return IsUnsigned(dtype) ? static_cast<double>(static_cast<std::make_unsigned_t<TElement>>(bits))
                           : static_cast<double>(bits);
}

}  // namespace riffle::core
