#include "testing/reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

namespace riffle::test {
namespace {

// 2^exponent, for exponents of normal doubles.
double PowerOfTwo(int exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

// Decodes an IEEE 754 binary format with the given widths of exponent and fraction. Each product is
// exact: doubles have more digits and a wider range than any of these formats.
double DecodeBits(uint32_t bits, int exponent_bits, int fraction_bits) {
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  double value;
  if (exponent == (1 << exponent_bits) - 1) {
    value = fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                          : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = static_cast<double>(fraction) * PowerOfTwo(1 - bias - fraction_bits);
  } else {
    value = static_cast<double>(fraction | (1u << fraction_bits)) *
            PowerOfTwo(exponent - bias - fraction_bits);
  }
  return (bits >> (exponent_bits + fraction_bits)) != 0 ? -value : value;
}

}  // namespace

double Decode(DType dtype, const void* element) {
  if (dtype == DType::kF32) {
    uint32_t bits;
    std::memcpy(&bits, element, sizeof(bits));
    return DecodeBits(bits, 8, 23);
  }
  uint16_t bits;
  std::memcpy(&bits, element, sizeof(bits));
  return dtype == DType::kF16 ? DecodeBits(bits, 5, 10) : DecodeBits(bits, 8, 7);
}

namespace {

template <typename T>
T Load(const void* element) {
  T value;
  std::memcpy(&value, element, sizeof(value));
  return value;
}

}  // namespace

static_assert(std::numeric_limits<long double>::digits >= 64, "int64 and uint64 need it");
long double Exact(DType dtype, const void* element) {
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      return Decode(dtype, element);
    case DType::kF64:
      return Load<double>(element);
    case DType::kI8:
      return Load<int8_t>(element);
    case DType::kU8:
      return Load<uint8_t>(element);
    case DType::kI16:
      return Load<int16_t>(element);
    case DType::kU16:
      return Load<uint16_t>(element);
    case DType::kI32:
      return static_cast<long double>(Load<int32_t>(element));
    case DType::kU32:
      return static_cast<long double>(Load<uint32_t>(element));
    case DType::kI64:
      return static_cast<long double>(Load<int64_t>(element));
    case DType::kU64:
      return static_cast<long double>(Load<uint64_t>(element));
    default:  // not a dtype of selection
      return 0;
  }
}

const uint8_t* ElementAt(const MatrixView& x, int64_t row, int64_t col) {
  return static_cast<const uint8_t*>(x.data) +
         (row * x.row_stride + col) * static_cast<int64_t>(SizeOf(x.dtype));
}

namespace {

// Before and BeforeAscending, for values of any floating-point type.
template <typename T>
bool IsBefore(T a, int64_t ia, T b, int64_t ib) {
  const bool nan_a = std::isnan(a);
  const bool nan_b = std::isnan(b);
  if (nan_a != nan_b) return nan_a;
  if (!nan_a && a != b) return a > b;
  return ia < ib;
}
template <typename T>
bool IsBeforeAscending(T a, int64_t ia, T b, int64_t ib) {
  if (std::isnan(a) != std::isnan(b)) return std::isnan(b);
  if (!std::isnan(a) && a != b) return a < b;
  return ia < ib;
}

// Whether a double holds every value of the dtype: comparisons of doubles are several times as fast
// as those of long doubles.
bool FitsDouble(DType dtype) { return dtype != DType::kI64 && dtype != DType::kU64; }

// Below, `T` holds every value of the dtype.
template <typename T>
int64_t ReferenceTiesIn(const MatrixView& x, int64_t row, int64_t col) {
  const auto value = static_cast<T>(Exact(x.dtype, ElementAt(x, row, col)));
  int64_t ties = 0;
  for (int64_t c = 0; c < x.cols; ++c) {
    const auto other = static_cast<T>(Exact(x.dtype, ElementAt(x, row, c)));
    ties += other == value || (std::isnan(other) && std::isnan(value));
  }
  return ties;
}

template <typename T>
std::vector<int32_t> ReferenceTopKIn(const MatrixView& x, int64_t row, int64_t begin, int64_t end,
                                     int64_t k, bool largest) {
  struct Element {
    T value;
    int64_t column;
  };
  std::vector<Element> elements;
  elements.reserve(static_cast<size_t>(std::max<int64_t>(0, end - begin)));
  for (int64_t column = begin; column < end; ++column) {
    elements.push_back({static_cast<T>(Exact(x.dtype, ElementAt(x, row, column))), column});
  }
  const auto before = [largest](const Element& a, const Element& b) {
    return largest ? IsBefore(a.value, a.column, b.value, b.column)
                   : IsBeforeAscending(a.value, a.column, b.value, b.column);
  };
  const auto kept = std::min(k, static_cast<int64_t>(elements.size()));
  // partial_sort's heap compares most elements once if few of many are kept; if many are kept,
  // nth_element and sort are faster.
  if (kept < static_cast<int64_t>(elements.size()) / 64) {
    std::partial_sort(elements.begin(), elements.begin() + kept, elements.end(), before);
  } else {
    std::nth_element(elements.begin(), elements.begin() + kept, elements.end(), before);
    std::sort(elements.begin(), elements.begin() + kept, before);
  }
  std::vector<int32_t> columns;
  for (int64_t i = 0; i < kept; ++i) {
    columns.push_back(static_cast<int32_t>(elements[static_cast<size_t>(i)].column));
  }
  return columns;
}

}  // namespace

bool Before(long double a, int64_t ia, long double b, int64_t ib) { return IsBefore(a, ia, b, ib); }

bool BeforeAscending(long double a, int64_t ia, long double b, int64_t ib) {
  return IsBeforeAscending(a, ia, b, ib);
}

std::vector<int32_t> ReferenceTopK(const MatrixView& x, int64_t row, int64_t begin, int64_t end,
                                   int64_t k, bool largest) {
  return FitsDouble(x.dtype) ? ReferenceTopKIn<double>(x, row, begin, end, k, largest)
                             : ReferenceTopKIn<long double>(x, row, begin, end, k, largest);
}

int64_t ReferenceTies(const MatrixView& x, int64_t row, int64_t col) {
  return FitsDouble(x.dtype) ? ReferenceTiesIn<double>(x, row, col)
                             : ReferenceTiesIn<long double>(x, row, col);
}

int64_t MaxLaneLoad(const std::vector<int32_t>& columns, int64_t lanes) {
  std::map<int64_t, int64_t> load;
  int64_t most = 0;
  for (const int32_t column : columns) {
    most = std::max(most, ++load[column % lanes]);
  }
  return most;
}

}  // namespace riffle::test
