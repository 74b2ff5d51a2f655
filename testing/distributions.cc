#include "testing/distributions.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "riffle/topk.h"

namespace riffle::test {
namespace {

constexpr double kPi = 3.14159265358979323846;

double Normal(Rng& rng) {  // Box-Muller
  return std::sqrt(-2 * std::log(1 - rng.Unit())) * std::cos(2 * kPi * rng.Unit());
}

// Whether `column` is one of the `count` columns, `step` apart from `first` on, that hold the best
// elements of a hot bucket or a hot lane.
bool IsHot(int64_t column, int64_t first, int64_t step, int64_t count) {
  const int64_t offset = column - first;
  return offset >= 0 && offset % step == 0 && offset / step < count;
}

// The row that an element is made for.
struct Row {
  DType dtype;
  int64_t n;
  int64_t k;
  int64_t hot;     // the first column of the hot bucket or lane
  int64_t few[3];  // the columns of kFewNaN's NaNs
};

float FiniteValue(Distribution distribution, const Row& row, int64_t i, Rng& rng) {
  const auto column = static_cast<double>(i);
  const auto n = static_cast<double>(row.n);
  switch (distribution) {
    case Distribution::kUniform:
      return static_cast<float>(rng.Unit());
    case Distribution::kLogProbs: {
      const double x = Normal(rng);
      return static_cast<float>(-12 - 2 * x * x + rng.Unit());
    }
    case Distribution::kFewPositive: {
      const double x = std::abs(Normal(rng));
      return static_cast<float>(rng.Below(row.n) < row.k / 2 ? x : -1 - x);
    }
    case Distribution::kTies:
      return static_cast<float>(rng.Below(64) - 40) * 0.25f;
    case Distribution::kAscending:
      return static_cast<float>((column - n / 2) / 16);
    case Distribution::kDescending:
      return static_cast<float>((n / 2 - column) / 16);
    case Distribution::kOrganPipe:
      return static_cast<float>(std::min(column, n - 1 - column) / 16 - 100);
    case Distribution::kAllEqual:
      return -1.5f;
    case Distribution::kHotBucket:
      return static_cast<float>(Normal(rng) + (IsHot(i, row.hot, 1, row.k) ? 50 : 0));
    case Distribution::kHotLane:
      return static_cast<float>(Normal(rng) + (IsHot(i, row.hot % 128, 128, row.k) ? 50 : 0));
    default:
      return static_cast<float>(Normal(rng));
  }
}

uint32_t ElementBits(Distribution distribution, const Row& row, int64_t i, Rng& rng) {
  const DType dtype = row.dtype;
  const uint32_t sign = rng.OneIn(2) ? SignBit(dtype) : 0;
  const auto finite = [&] { return Encode(dtype, FiniteValue(distribution, row, i, rng)); };
  switch (distribution) {
    case Distribution::kMostlyMinusInf:
      return rng.OneIn(50) ? finite() : MinusInf(dtype);
    case Distribution::kAllMinusInf:
      return MinusInf(dtype);
    case Distribution::kNaNSprinkled:
      return rng.OneIn(8) ? NaN(dtype, rng.Below(8)) : finite();
    case Distribution::kFewNaN:
      return std::ranges::count(row.few, i) != 0 ? NaN(dtype, rng.Below(8)) | SignBit(dtype)
                                                 : finite();
    case Distribution::kAllNaN:
      return NaN(dtype, rng.Below(8));
    case Distribution::kInfinities:
      return rng.OneIn(16) ? PlusInf(dtype) | sign : finite();
    case Distribution::kDenormals:
      return static_cast<uint32_t>(rng.Below(rng.OneIn(8) ? 2 : 100)) | sign;
    case Distribution::kSignedZeros:
      if (rng.Below(row.n) < row.k / 2) return Encode(dtype, 1.0f + static_cast<float>(rng.Unit()));
      return rng.OneIn(4) ? Encode(dtype, -1.0f) : sign;
    case Distribution::kRandomBits:
      return static_cast<uint32_t>(rng.Next());
    default:
      return finite();
  }
}

// Distributions to which a wider dtype may add digits that f32 does not have.
bool IsContinuous(Distribution distribution) {
  switch (distribution) {
    case Distribution::kNormal:
    case Distribution::kUniform:
    case Distribution::kLogProbs:
    case Distribution::kFewPositive:
    case Distribution::kHotBucket:
    case Distribution::kHotLane:
      return true;
    default:
      return false;
  }
}

uint64_t DoubleBits(Distribution distribution, uint32_t single, Rng& rng) {
  const uint64_t sign = uint64_t{single >> 31} << 63;
  const uint32_t exponent = single >> 23 & 255;
  const uint32_t fraction = single & 0x7fffffu;
  if (exponent == 255) {  // some NaNs with only the lowest bit set
    return sign | uint64_t{0x7ff} << 52 | (fraction == 1 ? uint64_t{1} : uint64_t{fraction} << 29);
  }
  if (exponent == 0) {
    return sign | fraction;  // zeros and subnormals
  }
  const auto bits = std::bit_cast<uint64_t>(static_cast<double>(std::bit_cast<float>(single)));
  return IsContinuous(distribution) ? bits | static_cast<uint64_t>(rng.Below(1 << 29)) : bits;
}

// `T` can represent every value of the dtype. The float is scaled to the dtype's range and clamped.
template <typename T>
uint64_t IntegerBitsBy(Distribution distribution, DType dtype, uint32_t single, Rng& rng) {
  const auto width = static_cast<int>(8 * SizeOf(dtype));
  const auto half = static_cast<T>(uint64_t{1} << (width - 1));
  const T lowest = IsUnsigned(dtype) ? 0 : -half;
  const T highest = IsUnsigned(dtype) ? 2 * half - 1 : half - 1;
  const auto value = std::bit_cast<float>(single);
  T scaled = highest;
  if (!std::isnan(value) && !std::isinf(value)) {
    // A normal distribution fills an eighth of the range; large values reach the ends.
    scaled = std::floor(static_cast<T>(value) * half / 16) + (IsUnsigned(dtype) ? half : 0);
    if (width == 64 && IsContinuous(distribution)) scaled += static_cast<T>(rng.Below(1 << 30));
  } else if (std::isinf(value) && value < 0) {
    scaled = lowest;
  }
  scaled = std::clamp(scaled, lowest, highest);
  return scaled < 0 ? ~static_cast<uint64_t>(-scaled - 1) : static_cast<uint64_t>(scaled);
}

uint64_t IntegerBits(Distribution distribution, DType dtype, uint32_t single, Rng& rng) {
  return SizeOf(dtype) == 8 ? IntegerBitsBy<long double>(distribution, dtype, single, rng)
                            : IntegerBitsBy<double>(distribution, dtype, single, rng);
}

uint64_t WideBits(Distribution distribution, const Row& row, int64_t i, Rng& rng) {
  if (row.dtype <= DType::kBF16) return ElementBits(distribution, row, i, rng);
  if (distribution == Distribution::kRandomBits) return rng.Next();
  Row single = row;
  single.dtype = DType::kF32;
  const uint32_t bits = ElementBits(distribution, single, i, rng);
  return row.dtype == DType::kF64 ? DoubleBits(distribution, bits, rng)
                                  : IntegerBits(distribution, row.dtype, bits, rng);
}

}  // namespace

std::vector<DType> AllDTypes() {
  std::vector<DType> all;
  for (int i = 0; i < kNumTopKDTypes; ++i) {
    all.push_back(static_cast<DType>(i));
  }
  return all;
}

const char* Name(Distribution distribution) {
  static constexpr const char* kNames[kDistributions] = {
      "normal",    "uniform",     "log_probs",  "few_positive",  "ties",
      "ascending", "descending",  "organ_pipe", "all_equal",     "hot_bucket",
      "hot_lane",  "mostly_-inf", "all_-inf",   "nan_sprinkled", "few_nan",
      "all_nan",   "infinities",  "denormals",  "signed_zeros",  "random_bits"};
  return kNames[static_cast<int>(distribution)];
}

std::vector<Distribution> AllDistributions() {
  std::vector<Distribution> all;
  for (int i = 0; i < kDistributions; ++i) {
    all.push_back(static_cast<Distribution>(i));
  }
  return all;
}

void FillRow(Distribution distribution, DType dtype, int64_t n, int64_t k, Rng& rng, uint8_t* row) {
  Row shape{dtype, n, k, std::max<int64_t>(0, rng.Below(n) - k), {}};
  std::ranges::generate(shape.few, [&] { return rng.Below(n); });
  for (int64_t i = 0; i < n; ++i) {
    Store(dtype, WideBits(distribution, shape, i, rng),
          row + i * static_cast<int64_t>(SizeOf(dtype)));
  }
}

uint32_t Encode(DType dtype, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (dtype == DType::kF32) return bits;
  if (dtype == DType::kBF16) return bits >> 16;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const float magnitude = std::abs(value);
  if (magnitude >= 65504.0f) return sign | 0x7bffu;
  if (magnitude < 0x1p-14f) return sign | static_cast<uint32_t>(magnitude * 0x1p24f);
  const uint32_t rebiased = (bits & 0x7fffffffu) - (112u << 23);
  return sign | (rebiased >> 13);
}

uint32_t PlusInf(DType dtype) {
  return dtype == DType::kF32 ? 0x7f800000u : dtype == DType::kF16 ? 0x7c00u : 0x7f80u;
}

uint32_t SignBit(DType dtype) { return dtype == DType::kF32 ? 0x80000000u : 0x8000u; }

uint32_t MinusInf(DType dtype) { return PlusInf(dtype) | SignBit(dtype); }

uint32_t NaN(DType dtype, int64_t which) {
  const uint32_t inf = PlusInf(dtype);
  const uint32_t all = SignBit(dtype) - 1;  // every bit but the sign
  const uint32_t fraction = all & ~inf;
  const uint32_t highest = fraction & ~(fraction >> 1);
  const uint32_t payloads[4] = {highest,   // what x86 makes of 0/0, there with the sign set
                                1,         // the smallest signalling NaN: one more than inf
                                fraction,  // the largest
                                highest | 1};
  return inf | payloads[which & 3] | ((which & 4) != 0 ? SignBit(dtype) : 0);
}

void Store(DType dtype, uint64_t bits, uint8_t* element) {
  std::memcpy(element, &bits, SizeOf(dtype));  // little-endian
}

}  // namespace riffle::test
