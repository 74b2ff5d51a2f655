#include "cli/reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "cli/failure.h"
#include "cli/numbers.h"

namespace riffle::cli {

uint32_t OrderKey(float value) {
  if (std::isnan(value)) {
    return UINT32_MAX;
  }
  // Adding zero turns -0 into +0. A negative float's bits grow as its value falls.
  const auto bits = std::bit_cast<uint32_t>(value + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

std::vector<int32_t> ReferenceTopK(const MatrixView& x, int64_t k) {
  const int64_t kept = std::min(k, x.cols);
  std::vector<uint64_t> row(static_cast<size_t>(x.cols));
  std::vector<int32_t> indices;
  indices.reserve(static_cast<size_t>(x.rows * kept));
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      // Ascending in this word is the contract's order: the best key, then the lowest column.
      const uint32_t descending = ~OrderKey(LoadFloat(x.data, x.dtype, r * x.row_stride + c));
      row[static_cast<size_t>(c)] =
          (static_cast<uint64_t>(descending) << 32) | static_cast<uint32_t>(c);
    }
    std::partial_sort(row.begin(), row.begin() + kept, row.end());
    for (int64_t i = 0; i < kept; ++i) {
      indices.push_back(static_cast<int32_t>(row[static_cast<size_t>(i)] & UINT32_MAX));
    }
  }
  return indices;
}

std::string Compare(const MatrixView& x, int64_t k, std::span<const int32_t> reference,
                    int64_t reference_k, std::span<const int32_t> indices, const void* values) {
  const size_t size = SizeOf(x.dtype);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t i = 0; i < k; ++i) {
      const int32_t expected =
          i < reference_k ? reference[static_cast<size_t>(r * reference_k + i)] : -1;
      const int32_t got = indices[static_cast<size_t>(r * k + i)];
      if (got != expected) {
        return fmt::format("row {}, place {}: column {} where the reference has {}", r, i, got,
                           expected);
      }
      if (values == nullptr || expected < 0) {
        continue;
      }
      const auto* element = static_cast<const uint8_t*>(x.data) +
                            static_cast<size_t>(r * x.row_stride + expected) * size;
      const auto* value =
          static_cast<const uint8_t*>(values) + static_cast<size_t>(r * k + i) * size;
      if (std::memcmp(element, value, size) != 0) {
        return fmt::format("row {}, place {}: value {} where x has {}", r, i,
                           FormatValue(LoadFloat(value, x.dtype, 0)),
                           FormatValue(LoadFloat(element, x.dtype, 0)));
      }
    }
  }
  return "";
}

}  // namespace riffle::cli
