// Reads, rounds and stores the scales of rows and of blocks, one number at a time.
#pragma once

#include <hwy/base.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/element.h"
#include "riffle/types.h"

namespace riffle::kv_cache {

inline constexpr uint32_t kInfBits = 0x7f800000;

// Rounds to nearest, ties to even; keeps subnormals and makes NaNs quiet.
inline uint16_t F16Bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > kInfBits) {
    half = 0x7e00 | (magnitude >> 13 & 0x1ff);
  } else if (magnitude < 0x38800000) {  // below 2^-14: the sum's last place is 2^-24
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    half = half < 0x7c00 ? half : 0x7c00;
  }
  return static_cast<uint16_t>(sign | half);
}

inline uint16_t BF16Bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const bool is_nan = (bits & 0x7fffffff) > kInfBits;
  const uint32_t upper = bits >> 16;
  return static_cast<uint16_t>(is_nan ? upper | 0x40 : (bits + 0x7fff + (upper & 1)) >> 16);
}

// The code of the smallest power of two that is not below `value`, at most 2^127; infinities and
// NaNs get the code of NaN. Pre: `value` is not negative.
inline uint8_t E8M0CodeUp(float value) {
  HWY_DASSERT(!(value < 0));
  const uint32_t bits = std::bit_cast<uint32_t>(value) & 0x7fffffff;
  if (bits >= kInfBits) {
    return 255;
  }
  if (bits <= 0x00400000) {  // 2^-127, an f32 subnormal
    return 0;
  }
  const uint32_t up = (bits + 0x007fffff) >> 23;
  return static_cast<uint8_t>(up < 254 ? up : 254);
}

inline float E8M0ToFloat(uint8_t code) {
  const uint32_t bits = code == 255 ? 0x7fc00000u : code == 0 ? 0x00400000u : uint32_t{code} << 23;
  return std::bit_cast<float>(bits);
}

inline float LoadScale(DType dtype, const uint8_t* at) {
  HWY_DASSERT(dtype <= DType::kBF16 || dtype == DType::kE8M0);
  return dtype == DType::kE8M0 ? E8M0ToFloat(*at) : core::LoadElement(dtype, at);
}

// Rounds `value` to the dtype, e8m0 upwards, stores it and returns what was stored.
inline float StoreScale(DType dtype, float value, uint8_t* at) {
  HWY_DASSERT(dtype <= DType::kBF16 || dtype == DType::kE8M0);
  if (dtype == DType::kE8M0) {
    *at = E8M0CodeUp(value);
  } else if (dtype == DType::kF32) {
    std::memcpy(at, &value, sizeof(value));
  } else {
    const uint16_t bits = dtype == DType::kF16 ? F16Bits(value) : BF16Bits(value);
    std::memcpy(at, &bits, sizeof(bits));
  }
  return LoadScale(dtype, at);
}

// The largest magnitude of an element that is written with a computed scale.
constexpr float MaxCode(DType dtype) {
  return dtype == DType::kE4M3 ? 448.0f : dtype == DType::kE5M2 ? 57344.0f : 127.0f;
}

}  // namespace riffle::kv_cache
