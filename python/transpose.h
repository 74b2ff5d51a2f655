// Copies between layouts, for axes that are not contiguous.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace riffle::python {

// Elements of any alignment, moved as integers of their width.
typedef uint16_t Word2 __attribute__((aligned(1), may_alias));
typedef uint32_t Word4 __attribute__((aligned(1), may_alias));
typedef uint64_t Word8 __attribute__((aligned(1), may_alias));

// to[c * to_stride + r] = from[r * row_stride + c * col_stride] for r < rows, c < cols.
template <typename T>
void Transpose(const T* from, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
               T* to, int64_t to_stride) {
  if (std::abs(row_stride) < std::abs(col_stride)) {
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        to[c * to_stride + r] = from[r * row_stride + c * col_stride];
      }
    }
    return;
  }
  // A cache line of columns at a time, each read once.
  constexpr int64_t kTile = 64 / static_cast<int64_t>(sizeof(T));
  constexpr int64_t kAhead = 16;
  const int64_t whole = col_stride == 1 ? cols / kTile * kTile : 0;
  for (int64_t c = 0; c < whole; c += kTile) {
    for (int64_t r = 0; r < rows; ++r) {
      const T* const line = from + r * row_stride + c;
      __builtin_prefetch(line + (r + kAhead < rows ? kAhead * row_stride : 0));
      for (int64_t j = 0; j < kTile; ++j) {
        to[(c + j) * to_stride + r] = line[j];
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = whole; c < cols; ++c) {
      to[c * to_stride + r] = from[r * row_stride + c * col_stride];
    }
  }
}

}  // namespace riffle::python
