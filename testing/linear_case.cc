#include "testing/linear_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>

#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/round.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

DType DTypeOf(WeightFormat format) {
  return format == WeightFormat::kF32   ? DType::kF32
         : format == WeightFormat::kF16 ? DType::kF16
                                        : DType::kBF16;
}

int64_t ElementBytes(WeightFormat format) {
  return format == WeightFormat::kQ8_0 ? 34 : static_cast<int64_t>(SizeOf(DTypeOf(format)));
}

// The layout of W in memory: contiguous lines whose beginnings are `stride` elements apart.
struct Lines {
  int64_t count, width, stride;
};
Lines LinesOf(const LinearSpec& spec) {
  const int64_t count = spec.transposed ? spec.d : spec.vocab;
  const int64_t inputs = spec.format == WeightFormat::kQ8_0 ? spec.d / 32 : spec.d;
  const int64_t width = spec.transposed ? spec.vocab : inputs;
  return {count, width, width + spec.weight_gap};
}

size_t Bytes(int64_t count, int64_t stride, int64_t width, int64_t element, int shift) {
  const int64_t elements = count == 0 ? 0 : (count - 1) * stride + width;
  return static_cast<size_t>(elements * element + shift);
}

float NormalValue(Rng& rng) {
  return static_cast<float>(std::sqrt(-2 * std::log(1 - rng.Unit())) *
                            std::cos(6.283185307179586 * rng.Unit()));
}

float Value(LinearData data, bool weight, Rng& rng) {
  switch (data) {
    case LinearData::kNormal:
      break;
    case LinearData::kTies:
      return static_cast<float>(rng.Between(-1, 1));
    case LinearData::kNonFinite:
      if (weight && rng.OneIn(400)) {
        const float values[] = {kInf, -kInf, std::nanf(""), -std::nanf("5")};
        return rng.Pick(values);
      }
      break;
    case LinearData::kDenormals:
      return rng.OneIn(3) ? NormalValue(rng) * 0x1p-130f : NormalValue(rng) * 0x1p-60f;
    case LinearData::kConstant:
      return weight ? 0.1f : 1.0f;
    case LinearData::kCancelling:
      return rng.OneIn(2) ? static_cast<float>(rng.Between(-2, 2)) : 0x1p-20f;
  }
  return NormalValue(rng);
}

bool IsDenormal(double value, DType dtype) {
  const double least = dtype == DType::kF16 ? 0x1p-14 : 0x1p-126;
  return value != 0 && std::abs(value) < least;
}

}  // namespace

std::string Describe(const LinearSpec& spec) {
  std::ostringstream text;
  text << "rows=" << spec.rows << " d=" << spec.d << " vocab=" << spec.vocab
       << " x=" << Name(spec.x_dtype) << " weight=" << Name(spec.format)
       << (spec.transposed ? " transposed" : "") << (spec.round_x ? " round_x" : "")
       << " bias=" << (spec.bias ? Name(*spec.bias) : "none")
       << " data=" << static_cast<int>(spec.data) << " gaps=" << spec.x_gap << ','
       << spec.weight_gap << (spec.backwards ? " backwards" : "") << " shift=" << spec.shift
       << " seed=" << spec.seed;
  return text.str();
}

LinearCase::LinearCase(const LinearSpec& spec)
    : spec_(spec),
      x_bytes_(Bytes(spec.rows, spec.d + spec.x_gap, spec.d,
                     static_cast<int64_t>(SizeOf(spec.x_dtype)), spec.shift),
               true),
      weight_bytes_(Bytes(LinesOf(spec).count, LinesOf(spec).stride, LinesOf(spec).width,
                          ElementBytes(spec.format), spec.shift),
                    true),
      bias_bytes_(
          spec.bias ? Bytes(1, 0, spec.vocab, static_cast<int64_t>(SizeOf(*spec.bias)), spec.shift)
                    : 0,
          true) {
  MakeX();
  MakeWeight();
  if (spec.bias) {
    Rng rng(spec.seed + 2);
    const size_t element = SizeOf(*spec.bias);
    bias_ = {bias_bytes_.data(), *spec.bias, spec.vocab};
    for (int64_t i = 0; i < spec.vocab; ++i) {
      uint8_t* at = bias_bytes_.data() + static_cast<size_t>(i) * element;
      Store(*spec.bias, Encode(*spec.bias, Value(spec.data, false, rng)), at);
      bias_values_.push_back(Decode(*spec.bias, at));
    }
  }
  x_bytes_.MakeReadOnly();
  weight_bytes_.MakeReadOnly();
  bias_bytes_.MakeReadOnly();
}

void LinearCase::MakeX() {
  Rng rng(spec_.seed);
  const auto element = static_cast<int64_t>(SizeOf(spec_.x_dtype));
  const int64_t stride = spec_.d + spec_.x_gap;
  const int64_t first = spec_.backwards ? (spec_.rows - 1) * stride : 0;
  uint8_t* data = x_bytes_.data() + std::max<int64_t>(first, 0) * element;
  x_ = {data, spec_.x_dtype, spec_.rows, spec_.d, spec_.backwards ? -stride : stride};
  std::memset(x_bytes_.data(), 0xff,
              Bytes(spec_.rows, stride, spec_.d, element, spec_.shift));  // NaN
  for (int64_t row = 0; row < spec_.rows; ++row) {
    for (int64_t i = 0; i < spec_.d; ++i) {
      uint8_t* at = data + (row * x_.row_stride + i) * element;
      Store(spec_.x_dtype, Encode(spec_.x_dtype, Value(spec_.data, false, rng)), at);
      x_values_.push_back(Decode(spec_.x_dtype, at));
    }
  }
}

void LinearCase::MakeWeight() {
  Rng rng(spec_.seed + 1);
  const Lines lines = LinesOf(spec_);
  const int64_t element = ElementBytes(spec_.format);
  std::memset(weight_bytes_.data(), 0xff,
              Bytes(lines.count, lines.stride, lines.width, element, spec_.shift));
  const int64_t first = spec_.backwards ? (lines.count - 1) * lines.stride : 0;
  uint8_t* data = weight_bytes_.data() + std::max<int64_t>(first, 0) * element;
  const int64_t stride = spec_.backwards ? -lines.stride : lines.stride;
  weight_ = {data,
             spec_.format,
             spec_.vocab,
             spec_.d,
             spec_.transposed ? 1 : stride,
             spec_.transposed ? stride : 1};
  weight_values_.resize(static_cast<size_t>(spec_.vocab * spec_.d));
  for (int64_t row = 0; row < spec_.vocab; ++row) {
    for (int64_t col = 0; col < spec_.d; ++col) {
      double& exact = weight_values_[static_cast<size_t>(row * spec_.d + col)];
      if (spec_.format != WeightFormat::kQ8_0) {
        const DType dtype = DTypeOf(spec_.format);
        uint8_t* at = data + (row * weight_.row_stride + col * weight_.col_stride) * element;
        Store(dtype, Encode(dtype, Value(spec_.data, true, rng)), at);
        exact = Decode(dtype, at);
        continue;
      }
      uint8_t* block = data + (row * weight_.row_stride + col / 32) * element;
      if (col % 32 == 0) {  // the scale is 1/16 with kTies, so that sums stay exact
        const float scale = Value(spec_.data, true, rng) * 0.01f;
        const bool exact_scale = spec_.data == LinearData::kTies;
        Store(DType::kF16, exact_scale ? 0x2c00 : Encode(DType::kF16, scale), block);
      }
      auto q = static_cast<int8_t>(rng.Between(-128, 127));  // also -128, which no encoder writes
      if (spec_.data == LinearData::kTies) q = static_cast<int8_t>(rng.Between(-1, 1) * 16);
      std::memcpy(block + 2 + col % 32, &q, 1);
      exact = q;
      if (col % 32 == 0) scale_values_.push_back(Decode(DType::kF16, block));
    }
  }
}

LinearOptions LinearCase::options(ThreadPool* pool) const {
  return {.bias = bias_, .round_x = spec_.round_x, .pool = pool};
}

std::vector<float> LinearCase::Run(ThreadPool* pool, std::string* fault) const {
  Output y(spec_.rows, spec_.vocab, spec_.vocab + 3, sizeof(float), 4);
  Linear(x_, weight_, {static_cast<float*>(y.data()), y.stride()}, options(pool));
  std::vector<float> result;
  for (int64_t row = 0; row < spec_.rows; ++row) {
    for (int64_t i = 0; i < spec_.vocab; ++i) {
      float value;
      std::memcpy(&value, y.cell(row, i), sizeof(value));
      y.Expect(row, i, &value);
      result.push_back(value);
    }
  }
  *fault = y.Difference("y");
  return result;
}

std::vector<float> LinearCase::RunRows(int64_t begin, int64_t rows, ThreadPool* pool) const {
  MatrixView part = x_;
  part.rows = rows;
  part.data = static_cast<const uint8_t*>(x_.data) +
              begin * x_.row_stride * static_cast<int64_t>(SizeOf(x_.dtype));
  std::vector<float> y(static_cast<size_t>(rows * spec_.vocab));
  Linear(part, weight_, {y.data(), spec_.vocab}, options(pool));
  return y;
}

// Error analysis. Every term is rounded in its chain of additions, in the sum of the chains, and
// when the bias is added; without FMA its product is rounded too. Each rounding is at most 2^-24 of
// the partial sum, which is at most the sum of magnitudes. bf16 dot products may treat denormal
// inputs and results as zeros.
LinearCase::Expected LinearCase::Reference(int64_t row, int64_t column) const {
  const bool rounds =
      spec_.round_x && (spec_.format == WeightFormat::kBF16 || spec_.format == WeightFormat::kQ8_0);
  const bool may_flush =
      (rounds || spec_.x_dtype == DType::kBF16) &&
      (spec_.format == WeightFormat::kBF16 || spec_.format == WeightFormat::kQ8_0);
  double sum = 0;
  double magnitude = 0;
  double flushed = 0;
  const int64_t block = spec_.format == WeightFormat::kQ8_0 ? 32 : std::max<int64_t>(spec_.d, 1);
  for (int64_t begin = 0; begin < spec_.d; begin += block) {
    const double scale = spec_.format != WeightFormat::kQ8_0
                             ? 1
                             : scale_values_[static_cast<size_t>((column * spec_.d + begin) / 32)];
    double part = 0;
    for (int64_t i = begin; i < begin + block; ++i) {
      double a = x_values_[static_cast<size_t>(row * spec_.d + i)];
      if (rounds) a = RoundToBF16(a);
      const double b = weight_values_[static_cast<size_t>(column * spec_.d + i)];
      part += a * b;
      magnitude += std::abs(a * b * scale);
      if (may_flush && (IsDenormal(a, DType::kF32) || IsDenormal(b, DType::kF32))) {
        flushed += std::abs(a * b * scale);
      }
    }
    sum += part * scale;
  }
  if (spec_.bias) {
    sum += bias_values_[static_cast<size_t>(column)];
    magnitude += std::abs(bias_values_[static_cast<size_t>(column)]);
  }
  const int64_t chain = spec_.format == WeightFormat::kQ8_0 ? 32 : 256;
  const auto roundings =
      static_cast<double>(std::min(spec_.d, chain) + (spec_.d + chain - 1) / chain + 3);
  // Results may underflow to a denormal or to zero; a block's scale multiplies the loss.
  const double lost = static_cast<double>(spec_.d + 2) * (may_flush ? 0x1p-126 : 0x1p-149) *
                      (spec_.format == WeightFormat::kQ8_0 ? 0x1p16 : 1);
  return {sum, magnitude * roundings * 0x1p-24 + flushed + lost};
}

std::string LinearCase::Check(const std::vector<float>& y) const {
  for (int64_t row = 0; row < spec_.rows; ++row) {
    for (int64_t column = 0; column < spec_.vocab; ++column) {
      const Expected expected = Reference(row, column);
      const float got = y[static_cast<size_t>(row * spec_.vocab + column)];
      uint32_t bits;
      std::memcpy(&bits, &got, sizeof(bits));
      const bool right = std::isnan(expected.value) ? bits == 0x7fc00000u
                         : std::isinf(expected.value)
                             ? got == expected.value
                             : std::abs(got - expected.value) <= expected.bound;
      if (!right || bits == 0x80000000u) {
        std::ostringstream text;
        text.precision(9);
        text << "y[" << row << ", " << column << "] = " << got << " (bits " << std::hex << bits
             << std::dec << ") but the sum is " << expected.value << ", give or take "
             << expected.bound << "; " << Describe(spec_) << " on " << Target();
        return text.str();
      }
    }
  }
  return "";
}

}  // namespace riffle::test
