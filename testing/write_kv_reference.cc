#include "testing/write_kv_reference.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

namespace riffle::test {
namespace {

struct FloatForm {
  int mantissa, bias;
  uint32_t largest;  // the code of the largest finite element
  bool has_inf;      // the code after `largest` is infinite
};

FloatForm Form(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return {10, 15, 0x7bff, true};
    case DType::kBF16:
      return {7, 127, 0x7f7f, true};
    case DType::kE4M3:
      return {3, 7, 0x7e, false};
    default:
      return {2, 15, 0x7b, true};  // e5m2
  }
}

uint32_t Sign(DType dtype) { return SizeOf(dtype) == 1 ? 0x80 : 0x8000; }

// The value of a code; that of infinity is the next number after the largest, as for rounding.
double ValueOf(const FloatForm& form, uint32_t code) {
  const uint32_t exponent = code >> form.mantissa;
  const double fraction = std::ldexp(code & ((1u << form.mantissa) - 1), -form.mantissa);
  return exponent == 0 ? std::ldexp(fraction, 1 - form.bias)
                       : std::ldexp(1 + fraction, static_cast<int>(exponent) - form.bias);
}

uint16_t Half(float value) { return static_cast<uint16_t>(NearestCode(DType::kF16, value)); }

void AppendHalf(float value, std::vector<uint8_t>* out) {
  const uint16_t half = Half(value);
  out->push_back(static_cast<uint8_t>(half));
  out->push_back(static_cast<uint8_t>(half >> 8));
}

constexpr int kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113};

using Codes = std::array<int, 32>;

void AppendFifthBits(const Codes& codes, std::vector<uint8_t>* out) {
  for (size_t byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (size_t bit = 0; bit < 8; ++bit) bits |= (codes[8 * byte + bit] >> 4) << bit;
    out->push_back(static_cast<uint8_t>(bits));
  }
}

void AppendHalves(const Codes& codes, std::vector<uint8_t>* out) {
  for (size_t i = 0; i < 16; ++i) {
    out->push_back(static_cast<uint8_t>((codes[i] & 15) | (codes[i + 16] & 15) << 4));
  }
}

float Reciprocal(float d) { return d == 0.0f ? 0.0f : 1.0f / d; }

float FirstOfLargestMagnitude(const float* x) {
  return *std::max_element(x, x + 32, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

void AppendCentred(const float* x, int bits, std::vector<uint8_t>* out) {
  const int middle = bits == 4 ? 8 : 16;
  const float d = FirstOfLargestMagnitude(x) / static_cast<float>(-middle);
  const float inverse = Reciprocal(d);
  Codes codes;
  for (size_t i = 0; i < 32; ++i) {
    const float product = x[i] * inverse;
    const float shifted = product + (static_cast<float>(middle) + 0.5f);
    codes[i] = std::min(static_cast<int>(shifted), 2 * middle - 1);
  }
  AppendHalf(d, out);
  if (bits == 5) AppendFifthBits(codes, out);
  AppendHalves(codes, out);
}

void AppendFromMin(const float* x, int bits, std::vector<uint8_t>* out) {
  const int last = bits == 4 ? 15 : 31;
  const float min = *std::min_element(x, x + 32), max = *std::max_element(x, x + 32);
  const float d = (max - min) / static_cast<float>(last);
  const float inverse = Reciprocal(d);
  Codes codes;
  for (size_t i = 0; i < 32; ++i) {
    const float product = (x[i] - min) * inverse;
    codes[i] = std::min(static_cast<int>(product + 0.5f), last);
  }
  AppendHalf(d, out);
  AppendHalf(min, out);
  if (bits == 5) AppendFifthBits(codes, out);
  AppendHalves(codes, out);
}

void AppendQ8(const float* x, std::vector<uint8_t>* out) {
  const float d = std::fabs(FirstOfLargestMagnitude(x)) / 127.0f;
  const float inverse = Reciprocal(d);
  AppendHalf(d, out);
  for (size_t i = 0; i < 32; ++i) {
    const float product = x[i] * inverse;
    out->push_back(static_cast<uint8_t>(static_cast<int>(std::round(product))));
  }
}

// ggml's quantize_row_iq4_nl_ref, for one block without importance weights.
void AppendIQ4(const float* x, std::vector<uint8_t>* out) {
  Codes codes{};
  float d = 0;
  const float max = FirstOfLargestMagnitude(x);
  if (std::fabs(max) >= 1e-15f) {
    const float inverse = 1.0f / (max / -127.0f);
    float sum_xq = 0, sum_qq = 0;
    for (size_t i = 0; i < 32; ++i) {
      const float wanted = inverse * x[i];
      // The nearest value, the upper of two that are equally near: exact in double.
      int best = 0;
      for (int code = 1; code < 16; ++code) {
        if (std::fabs(double{wanted} - kIQ4Values[code]) <=
            std::fabs(double{wanted} - kIQ4Values[best])) {
          best = code;
        }
      }
      codes[i] = best;
      const auto q = static_cast<float>(kIQ4Values[best]);
      const float weight = x[i] * x[i];
      const float weighted = weight * q;
      const float xq = weighted * x[i], qq = weighted * q;
      sum_xq += xq;
      sum_qq += qq;
    }
    d = sum_xq / sum_qq;
  }
  AppendHalf(d, out);
  AppendHalves(codes, out);
}

// The elements of a block in GGUF's layout.
void DecodeBlock(KvFormat format, const uint8_t* block, std::vector<double>* x) {
  const auto half = [block](size_t at) {
    return DecodeCode(DType::kF16, block[at] | static_cast<uint32_t>(block[at + 1]) << 8);
  };
  const bool has_min = format == KvFormat::kQ4_1 || format == KvFormat::kQ5_1;
  const bool has_fifth = format == KvFormat::kQ5_0 || format == KvFormat::kQ5_1;
  const uint8_t* const fifth = block + (has_min ? 4 : 2);
  const uint8_t* const codes = fifth + (has_fifth ? 4 : 0);
  for (size_t i = 0; i < 32; ++i) {
    if (format == KvFormat::kQ8_0) {
      x->push_back(half(0) * static_cast<int8_t>(codes[i]));
      continue;
    }
    int code = i < 16 ? codes[i] & 15 : codes[i - 16] >> 4;
    if (has_fifth) code |= (fifth[i / 8] >> i % 8 & 1) << 4;
    if (format == KvFormat::kIQ4NL) {
      x->push_back(half(0) * kIQ4Values[code]);
    } else if (has_min) {
      x->push_back(half(0) * code + half(2));
    } else {
      x->push_back(half(0) * (code - (has_fifth ? 16 : 8)));
    }
  }
}

}  // namespace

double DecodeCode(DType dtype, uint32_t code) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, &code, sizeof(value));
    return value;
  }
  if (dtype == DType::kI8) return static_cast<int8_t>(code);
  if (dtype == DType::kE8M0)
    return code == 255 ? kNaN : std::ldexp(1.0, static_cast<int>(code) - 127);
  const FloatForm form = Form(dtype);
  const uint32_t magnitude = code & (Sign(dtype) - 1);
  double value = ValueOf(form, magnitude);
  if (magnitude > form.largest) {
    value = form.has_inf && magnitude == form.largest + 1 ? INFINITY : kNaN;
  }
  return (code & Sign(dtype)) != 0 ? -value : value;
}

uint32_t NearestCode(DType dtype, double value) {
  if (dtype == DType::kF32) {
    const auto single = static_cast<float>(value);
    uint32_t code;
    std::memcpy(&code, &single, sizeof(code));
    return code;
  }
  if (dtype == DType::kI8) {
    const double number = std::isnan(value) ? 0 : std::clamp(std::nearbyint(value), -128.0, 127.0);
    return static_cast<uint8_t>(static_cast<int>(number));
  }
  const FloatForm form = Form(dtype);
  const uint32_t sign = std::signbit(value) ? Sign(dtype) : 0;
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | (form.largest + (form.has_inf ? 2 : 1));
  // The last code whose value is not above, then whether the next one is nearer.
  uint32_t low = 0, high = form.largest + 1;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (ValueOf(form, middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - ValueOf(form, low), above = ValueOf(form, low + 1) - magnitude;
  const uint32_t nearest = below < above || (below == above && low % 2 == 0) ? low : low + 1;
  return sign | (form.has_inf ? nearest : std::min(nearest, form.largest));
}

bool SameCode(DType dtype, uint32_t a, uint32_t b) {
  return a == b || (std::isnan(DecodeCode(dtype, a)) && std::isnan(DecodeCode(dtype, b)));
}

uint32_t ScaleCode(DType dtype, float value) {
  if (dtype != DType::kE8M0) return NearestCode(dtype, value);
  if (!std::isfinite(value)) return 255;
  uint32_t code = 0;
  while (code < 254 && DecodeCode(dtype, code) < value) ++code;
  return code;
}

void AppendBlock(KvFormat format, const float* x, std::vector<uint8_t>* out) {
  switch (format) {
    case KvFormat::kQ8_0:
      return AppendQ8(x, out);
    case KvFormat::kQ4_0:
      return AppendCentred(x, 4, out);
    case KvFormat::kQ5_0:
      return AppendCentred(x, 5, out);
    case KvFormat::kQ4_1:
      return AppendFromMin(x, 4, out);
    case KvFormat::kQ5_1:
      return AppendFromMin(x, 5, out);
    default:
      return AppendIQ4(x, out);
  }
}

std::vector<double> DecodeRow(const PagedKv& kv, int64_t page, int64_t token, int64_t head) {
  const auto bytes = [](const void* data, DType dtype, int64_t at) {
    return static_cast<const uint8_t*>(data) + at * static_cast<int64_t>(SizeOf(dtype));
  };
  const auto code = [&](const void* data, DType dtype, int64_t at) {
    uint32_t found = 0;
    std::memcpy(&found, bytes(data, dtype, at), SizeOf(dtype));
    return found;
  };
  const int64_t row = page * kv.page_stride + token * kv.token_stride + head * kv.head_stride;
  const KvScales& scales = kv.scales;
  std::vector<double> x;
  for (int64_t i = 0; i < kv.head_dim; ++i) {
    if (kv.format != KvFormat::kPlain) {
      DecodeBlock(kv.format, bytes(kv.data, DType::kU8, row + i / 32 * BlockBytes(kv.format)), &x);
      i += 31;
      continue;
    }
    double value = DecodeCode(kv.dtype, code(kv.data, kv.dtype, row + i));
    if (scales.data != nullptr) {
      const int64_t at = page * scales.page_stride + token * scales.token_stride +
                         head * scales.head_stride +
                         (scales.group > 0 ? i / scales.group * scales.group_stride : 0);
      value *= DecodeCode(scales.dtype, code(scales.data, scales.dtype, at)) / scales.divisor;
    }
    x.push_back(value);
  }
  return x;
}

}  // namespace riffle::test
