#include "testing/kv_codes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "testing/distributions.h"
#include "testing/reference.h"

namespace riffle::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int kIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

double HalfAt(const uint8_t* from) { return Decode(DType::kF16, from); }

// Where the bytes of a block's codes begin, and its fifth bits if it has any.
int CodesAt(KvFormat format) {
  return format == KvFormat::kQ4_1   ? 4
         : format == KvFormat::kQ5_0 ? 6
         : format == KvFormat::kQ5_1 ? 8
                                     : 2;
}
bool HasFifthBits(KvFormat format) {
  return format == KvFormat::kQ5_0 || format == KvFormat::kQ5_1;
}

int CodeOf(KvFormat format, const uint8_t* block, int i) {
  const uint8_t byte = block[CodesAt(format) + i % 16];
  int code = i < 16 ? byte % 16 : byte / 16;
  if (HasFifthBits(format)) {
    const uint8_t* bits = block + CodesAt(format) - 4;
    code += 16 * (bits[i / 8] >> i % 8 & 1);
  }
  return code;
}

void PutCode(KvFormat format, int code, uint8_t* block, int i) {
  uint8_t& byte = block[CodesAt(format) + i % 16];
  byte = static_cast<uint8_t>(i < 16 ? (byte & 0xf0) | code % 16 : (byte & 0x0f) | code % 16 * 16);
  if (HasFifthBits(format)) {
    uint8_t& bits = block[CodesAt(format) - 4 + i / 8];
    bits = static_cast<uint8_t>((bits & ~(1 << i % 8)) | code / 16 << i % 8);
  }
}

double DecodeBlockElement(KvFormat format, const uint8_t* block, int i) {
  const double scale = HalfAt(block);
  switch (format) {
    case KvFormat::kQ8_0:
      return scale * static_cast<int8_t>(block[2 + i]);
    case KvFormat::kQ4_0:
      return scale * (CodeOf(format, block, i) - 8);
    case KvFormat::kQ5_0:
      return scale * (CodeOf(format, block, i) - 16);
    case KvFormat::kIQ4NL:
      return scale * kIQ4[CodeOf(format, block, i)];
    default:
      return scale * CodeOf(format, block, i) + HalfAt(block + 2);
  }
}

// The code whose integer is nearest to x.
int NearestCode(KvFormat format, double x) {
  const int codes = HasFifthBits(format) ? 32 : 16;
  if (format == KvFormat::kIQ4NL) {
    int best = 0;
    for (int code = 1; code < codes; ++code) {
      best = std::abs(kIQ4[code] - x) < std::abs(kIQ4[best] - x) ? code : best;
    }
    return best;
  }
  const int zero = format == KvFormat::kQ4_0 ? 8 : format == KvFormat::kQ5_0 ? 16 : 0;
  return static_cast<int>(std::clamp(std::nearbyint(x) + zero, 0.0, codes - 1.0));
}

}  // namespace

namespace {

double ComputeFloat8(DType dtype, uint8_t code) {
  if (dtype == DType::kE8M0) {
    return code == 255 ? kNaN : std::ldexp(1.0, code - 127);
  }
  const int places = dtype == DType::kE4M3 ? 3 : 2;
  const int bias = dtype == DType::kE4M3 ? 7 : 15;
  const int exponent = (code & 0x7f) >> places;
  const int fraction = code & ((1 << places) - 1);
  const double sign = code < 128 ? 1 : -1;
  if (dtype == DType::kE4M3 && (code & 0x7f) == 0x7f) {
    return kNaN;
  }
  if (dtype == DType::kE5M2 && exponent == 31) {
    return fraction == 0 ? sign * kInf : kNaN;
  }
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias - places)
                       : sign * std::ldexp(fraction + (1 << places), exponent - bias - places);
}

std::array<double, 256> AllFloat8(DType dtype) {
  std::array<double, 256> values;
  for (int code = 0; code < 256; ++code) {
    values[static_cast<size_t>(code)] = ComputeFloat8(dtype, static_cast<uint8_t>(code));
  }
  return values;
}

}  // namespace

double DecodeFloat8(DType dtype, uint8_t code) {
  static const std::array<double, 256> kE8M0 = AllFloat8(DType::kE8M0);
  static const std::array<double, 256> kE4M3 = AllFloat8(DType::kE4M3);
  static const std::array<double, 256> kE5M2 = AllFloat8(DType::kE5M2);
  return (dtype == DType::kE8M0 ? kE8M0 : dtype == DType::kE4M3 ? kE4M3 : kE5M2)[code];
}

double DecodeScale(DType dtype, const uint8_t* from) {
  return dtype == DType::kE8M0 ? DecodeFloat8(dtype, *from) : Decode(dtype, from);
}

double EncodeScale(DType dtype, double scale, uint8_t* to) {
  if (dtype == DType::kE8M0) {
    int exponent = 0;
    if (std::isfinite(scale)) {
      std::frexp(scale, &exponent);
    }
    *to = std::isfinite(scale) ? static_cast<uint8_t>(std::clamp(exponent + 127, 0, 254)) : 255;
  } else {
    const uint32_t bits = std::isnan(scale)   ? NaN(dtype, 0)
                          : std::isinf(scale) ? (scale > 0 ? PlusInf(dtype) : MinusInf(dtype))
                                              : Encode(dtype, static_cast<float>(scale));
    Store(dtype, bits, to);
  }
  return DecodeScale(dtype, to);
}

double DecodeElement(const KvCoding& coding, const uint8_t* row, int i) {
  if (coding.format != KvFormat::kPlain) {
    return DecodeBlockElement(coding.format, row + i / 32 * BlockBytes(coding.format), i % 32);
  }
  const uint8_t* at = row + static_cast<size_t>(i) * SizeOf(coding.dtype);
  switch (coding.dtype) {
    case DType::kI8:
      return static_cast<int8_t>(*at);
    case DType::kE4M3:
    case DType::kE5M2:
      return DecodeFloat8(coding.dtype, *at);
    default:
      return Decode(coding.dtype, at);
  }
}

double LargestCode(DType dtype) {
  return dtype == DType::kE4M3 ? 448 : dtype == DType::kE5M2 ? 57344 : 127;
}

void EncodeElement(DType dtype, double x, uint8_t* row, int i) {
  uint8_t* at = row + static_cast<size_t>(i) * SizeOf(dtype);
  if (dtype <= DType::kBF16) {
    EncodeScale(dtype, x, at);
    return;
  }
  if (dtype == DType::kI8) {
    const double code = std::isnan(x) ? 0 : std::clamp(std::nearbyint(x), -128.0, 127.0);
    *at = static_cast<uint8_t>(static_cast<int>(code));
    return;
  }
  // Positive codes ascend. NaN has a code, and so has an infinity of e5m2.
  const bool keeps_infinity = dtype == DType::kE5M2;
  const int last = keeps_infinity ? 0x7b : 0x7e;
  int code = 0x7f;
  if (std::isinf(x) && keeps_infinity) {
    code = 0x7c;
  } else if (std::isfinite(x)) {
    const double magnitude = std::abs(x);
    int low = 0;
    int high = last;
    while (low < high) {  // the largest code of at most the magnitude
      const int middle = (low + high + 1) / 2;
      if (DecodeFloat8(dtype, static_cast<uint8_t>(middle)) <= magnitude) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const double below = DecodeFloat8(dtype, static_cast<uint8_t>(low));
    const double above = DecodeFloat8(dtype, static_cast<uint8_t>(std::min(low + 1, last)));
    code = above - magnitude < magnitude - below ? std::min(low + 1, last) : low;
  }
  *at = static_cast<uint8_t>(code | (std::signbit(x) ? 0x80 : 0));
}

void EncodeBlock(KvFormat format, const double* x, uint8_t* block) {
  double low = 0;
  double high = 0;
  double largest = 0;
  for (int i = 0; i < 32; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    largest = std::isnan(x[i]) || std::abs(x[i]) > largest ? std::abs(x[i]) : largest;
  }
  const bool offset = format == KvFormat::kQ4_1 || format == KvFormat::kQ5_1;
  const double codes = HasFifthBits(format) ? 32 : 16;
  const double wanted = !std::isfinite(largest)      ? largest
                        : offset                     ? (high - low) / (codes - 1)
                        : format == KvFormat::kQ8_0  ? largest / 127
                        : format == KvFormat::kIQ4NL ? largest / 113
                                                     : largest / (codes / 2);
  const double scale = EncodeScale(DType::kF16, wanted, block);
  double least = 0;
  if (offset) {
    least = EncodeScale(DType::kF16, std::isfinite(largest) ? low : 0.0, block + 2);
  }
  for (int i = 0; i < 32; ++i) {
    // With an infinite or NaN scale the code only keeps the sign.
    const double steps = scale == 0             ? 0
                         : std::isfinite(scale) ? (x[i] - least) / scale
                         : x[i] < 0             ? -1
                                                : 1;
    if (format == KvFormat::kQ8_0) {
      block[2 + i] =
          static_cast<uint8_t>(static_cast<int>(std::clamp(std::nearbyint(steps), -128.0, 127.0)));
    } else {
      PutCode(format, NearestCode(format, steps), block, i);
    }
  }
}

}  // namespace riffle::test
