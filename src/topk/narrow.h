// What a door hands to the kernel for many rows of few columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/lease.h"
#include "riffle/topk.h"

namespace riffle::topk {

// A matrix and where the answers go; strides in bytes.
struct NarrowRows {
  const uint8_t* x = nullptr;  // [rows, n] of dtype
  int64_t row_stride = 0;
  DType dtype = DType::kF32;
  size_t n = 0;  // > 0
  size_t k = 0;  // 1..n
  bool largest = true;
  bool wide = false;          // indices are int64, not int32
  uint8_t* values = nullptr;  // [rows, k]
  int64_t values_stride = 0;
  uint8_t* indices = nullptr;  // [rows, k]
  int64_t indices_stride = 0;
};

constexpr size_t kNarrowSink = 16;  // the largest k that needs no sort of the whole rows

// A vector of 64 bytes for each column: whole vectors of columns, and what kNarrowSink may write.
constexpr size_t NarrowScratch(size_t n) { return (n + 15) / 16 * 16 * 64; }

// TopK of rows without ranges, all with the same k; false, with nothing done, where another way is
// quicker.
bool RunNarrow(const MatrixView& x, int64_t k, const TopKOut& out, const TopKOptions& options,
               core::Lease& lease);

}  // namespace riffle::topk
