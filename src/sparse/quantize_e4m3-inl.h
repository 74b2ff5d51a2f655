// Elements of e4m3 that share a scale. Included once per SIMD target.
#if defined(RIFFLE_SPARSE_QUANTIZE_E4M3_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_QUANTIZE_E4M3_INL_H_
#undef RIFFLE_SPARSE_QUANTIZE_E4M3_INL_H_
#else
#define RIFFLE_SPARSE_QUANTIZE_E4M3_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "sparse/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {

// |x| <= 448 as an e4m3 code, to the nearest, ties to the even code.
HWY_INLINE uint8_t E4M3Code(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  const float magnitude = std::min(std::fabs(x), 448.0f);
  if (magnitude < 0x1p-6f) {  // subnormal: steps of 2^-9, to which adding 2^23 rounds
    const float shifted = magnitude * 0x1p9f + 0x1p23f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) & 0xf));
  }
  const uint32_t wide = std::bit_cast<uint32_t>(magnitude) - (120u << 23);
  return static_cast<uint8_t>(sign | (wide + 0x7ffff + (wide >> 20 & 1)) >> 20);
}

// Quantises elements to codes and returns their scale: max(largest magnitude, 1e-4) / 448, rounded
// up to a power of two if that is asked for. If an element is not finite, codes are 0 and the scale
// is NaN. count: a multiple of 16.
HWY_INLINE float QuantizeE4M3(const float* x, int count, bool power_of_two, uint8_t* codes) {
  const float max = MaxMagnitude(x, count);
  if (!(max <= hwy::HighestValue<float>())) {
    std::memset(codes, 0, static_cast<size_t>(count));
    return __builtin_nanf("");
  }
  float scale = std::max(max, 1e-4f) / 448.0f;
  if (power_of_two) {  // up
    const auto bits = std::bit_cast<uint32_t>(scale);
    scale = std::bit_cast<float>((bits + 0x7fffff) & 0xff800000u);
  }
  for (int i = 0; i < count; ++i) {
    codes[i] = E4M3Code(x[i] / scale);
  }
  return scale;
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
