#include "cli/numbers.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "testing/reference.h"

namespace riffle::cli {
namespace {

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

}  // namespace

float LoadFloat(const void* data, DType dtype, int64_t i) {
  const auto* element = static_cast<const uint8_t*>(data) + i * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kBF16) {  // checking an LM head decodes 600 million of them
    uint16_t bits;
    std::memcpy(&bits, element, sizeof(bits));
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
  return static_cast<float>(test::Exact(dtype, element));
}

void StoreFloat(float value, void* data, DType dtype, int64_t i) {
  auto* element = static_cast<uint8_t*>(data) + i * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(element, &value, sizeof(value));
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? FloatToHalf(value) : FloatToBFloat16(value);
  std::memcpy(element, &bits, sizeof(bits));
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
