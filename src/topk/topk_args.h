// What entry points pass to kernels: checked, planned, and the same for every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_plan.h"

namespace riffle::topk {

// One row or one range of a row.
struct RowTask {
  const void* x = nullptr;  // [n]
  DType dtype = DType::kF32;
  int64_t n = 0;  // > 0
  int64_t k = 0;  // 1..n
  bool sorted = true;
  bool largest = true;
  BucketPlan plan;
  void* values = nullptr;           // [k], null: not wanted
  int32_t* indices = nullptr;       // [k]; if wide_indices are wanted, their second half
  int64_t* wide_indices = nullptr;  // [k], null: not wanted
  TopKStats* stats = nullptr;       // null: not wanted
};

struct LaneOptions {
  int lanes = 128;
  std::span<const int> schedule;  // not empty, increasing
};

// Many rows of few columns: the matrix and where the answers go. Strides are in bytes.
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

constexpr size_t kNarrowSink = 16;  // the largest k that does not take a sort of all columns

// 64 bytes, a vector, for each column. There are whole vectors of columns, and at least kNarrowSink
// columns, all of which may be written.
constexpr size_t NarrowScratch(size_t n) { return (n + 15) / 16 * 16 * 64; }

}  // namespace riffle::topk
