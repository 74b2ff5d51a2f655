#include "cli/numbers.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace riffle::cli {
namespace {

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (fraction << 13));
}

uint16_t FloatToHalf(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) {
    return static_cast<uint16_t>(sign | 0x7e00);
  }
  // 65520 is halfway between the largest finite half and the next power of two.
  if (magnitude >= 65520.0f) {
    return static_cast<uint16_t>(sign | 0x7c00);
  }
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24; 1024 of them carry into 2^-14
    return static_cast<uint16_t>(sign | std::lrint(std::ldexp(magnitude, 24)));
  }
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  const uint32_t odd = (bits >> 13) & 1;
  const uint32_t rounded =
      (bits + 0xfff + odd) >> 13;  // a carry moves into the exponent, as it must
  return static_cast<uint16_t>(sign | (rounded - ((127 - 15) << 10)));
}

uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) {
    return static_cast<uint16_t>((bits >> 16) | 0x40);  // quiet: a fraction of zeros would be inf
  }
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// f(0 of the integer type) for an integer dtype.
template <typename F>
auto ForInteger(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kI8:
      return f(int8_t{});
    case DType::kU8:
      return f(uint8_t{});
    case DType::kI16:
      return f(int16_t{});
    case DType::kU16:
      return f(uint16_t{});
    case DType::kI32:
      return f(int32_t{});
    case DType::kU32:
      return f(uint32_t{});
    case DType::kI64:
      return f(int64_t{});
    default:
      return f(uint64_t{});
  }
}

// Logits of 16 and -16 are the ends of an integer's range; beyond them it saturates.
template <typename T>
T ScaledInteger(float value) {
  constexpr float kHalf =
      static_cast<float>(std::numeric_limits<std::make_signed_t<T>>::max() / 2 + 1) * 2;
  const float scaled = std::nearbyint(value * (kHalf / 16)) + (std::is_unsigned_v<T> ? kHalf : 0);
  const float end = std::is_unsigned_v<T> ? 2 * kHalf : kHalf;
  if (std::isnan(value) || scaled >= end) {
    return std::numeric_limits<T>::max();
  }
  return scaled <= end - 2 * kHalf ? std::numeric_limits<T>::min() : static_cast<T>(scaled);
}

}  // namespace

float LoadFloat(const void* data, DType dtype, int64_t i) {
  const auto* bytes = static_cast<const uint8_t*>(data) + i * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
  }
  if (dtype == DType::kF64) {
    double value;
    std::memcpy(&value, bytes, sizeof(value));
    return static_cast<float>(value);
  }
  if (!IsFloat(dtype)) {
    return ForInteger(dtype, [bytes](auto value) {
      std::memcpy(&value, bytes, sizeof(value));
      return static_cast<float>(value);
    });
  }
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return dtype == DType::kF16 ? HalfToFloat(bits)
                              : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

void StoreFloat(float value, void* data, DType dtype, int64_t i) {
  auto* bytes = static_cast<uint8_t*>(data) + i * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(bytes, &value, sizeof(value));
    return;
  }
  if (dtype == DType::kF64) {
    const double wide = value;
    std::memcpy(bytes, &wide, sizeof(wide));
    return;
  }
  if (!IsFloat(dtype)) {
    ForInteger(dtype, [=](auto integer) {
      integer = ScaledInteger<decltype(integer)>(value);
      std::memcpy(bytes, &integer, sizeof(integer));
    });
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? FloatToHalf(value) : FloatToBFloat16(value);
  std::memcpy(bytes, &bits, sizeof(bits));
}

std::optional<DType> ParseDType(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const std::string_view short_name = dtype == DType::kF32   ? "f32"
                                        : dtype == DType::kF16 ? "f16"
                                                               : "bf16";
    if (name == short_name || name == Name(dtype)) {
      return dtype;
    }
  }
  return std::nullopt;
}

std::string FormatValue(float value) {
  if (std::isnan(value)) {
    return "nan";  // of either sign: the order knows one NaN
  }
  return fmt::format("{}", value);
}

}  // namespace riffle::cli
