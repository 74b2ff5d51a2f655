#include "cli/reference.h"

#include <algorithm>
#include <cstring>

#include "cli/failure.h"
#include "cli/numbers.h"
#include "testing/reference.h"

namespace riffle::cli {

std::vector<int32_t> ReferenceTopK(const MatrixView& x, int64_t k) {
  std::vector<int32_t> indices;
  indices.reserve(static_cast<size_t>(x.rows * std::min(k, x.cols)));
  for (int64_t r = 0; r < x.rows; ++r) {
    const std::vector<int32_t> row = test::ReferenceTopK(x, r, 0, x.cols, k);
    indices.insert(indices.end(), row.begin(), row.end());
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
      const uint8_t* element = test::ElementAt(x, r, expected);
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
