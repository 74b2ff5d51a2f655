// The columns of a row of LinearTopK's output, which kernels write as int32.
#pragma once

#include <cstdint>
#include <cstring>

#include "riffle/linear_topk.h"

namespace riffle::lm_head {

inline uint8_t* IndicesOf(const LinearTopKOut& out, int64_t row) {
  return static_cast<uint8_t*>(out.indices) +
         row * out.indices_stride * static_cast<int64_t>(SizeOf(out.index_type));
}

// Where a kernel writes the k columns of a row, at any alignment: in place for int32; for int64 in
// the second half of the row, from where WidenColumns moves them.
inline int32_t* ColumnsOf(const LinearTopKOut& out, int64_t row, int64_t k) {
  auto* columns = reinterpret_cast<int32_t*>(IndicesOf(out, row));
  return out.index_type == IndexType::kInt64 ? columns + k : columns;
}

// Finishes a row whose columns a kernel has written. Widening column i overwrites the int32 places
// 2i and 2i + 1. Where these are >= k they held columns 2i - k and 2i + 1 - k, neither of which
// comes after column i.
inline void WidenColumns(const LinearTopKOut& out, int64_t row, int64_t k) {
  if (out.index_type != IndexType::kInt64) {
    return;
  }
  uint8_t* const indices = IndicesOf(out, row);
  for (int64_t i = 0; i < k; ++i) {
    int32_t column;
    std::memcpy(&column, indices + (k + i) * int64_t{sizeof(column)}, sizeof(column));
    const int64_t wide = column;
    std::memcpy(indices + i * int64_t{sizeof(wide)}, &wide, sizeof(wide));
  }
}

}  // namespace riffle::lm_head
