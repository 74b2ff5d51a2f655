// A call of top-k as the kernels' tasks, row by row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_kernels.h"
#include "topk/topk_plan.h"

namespace riffle::topk {

// What a call does to each row; everything in it has been checked.
struct TopKBatch {
  MatrixView x;
  TopKOut out;
  int64_t width = 0;                     // columns of the outputs
  std::span<const int32_t> k = {};       // per row; empty: `width` for all
  std::span<const int32_t> starts = {};  // ranges; empty: whole rows
  std::span<const int32_t> ends = {};
  int next_n = 0;  // > 0: `ends` holds the lengths of decoded sequences

  struct Range {
    int64_t begin;
    int64_t end;
  };
  Range RangeOf(int64_t row) const {
    const auto r = static_cast<size_t>(row);
    if (next_n > 0) {
      const int64_t length = ends[static_cast<size_t>(row / next_n)];
      return {0, std::max<int64_t>(0, length - next_n + row % next_n + 1)};
    }
    return starts.empty() ? Range{0, x.cols} : Range{starts[r], std::max(starts[r], ends[r])};
  }

  // The work of one row; n = 0 when there is none.
  RowTask Task(int64_t row, const TopKOptions& options) const {
    const auto element = static_cast<int64_t>(SizeOf(x.dtype));
    const Range range = RangeOf(row);
    RowTask task;
    task.x = static_cast<const uint8_t*>(x.data) + (row * x.row_stride + range.begin) * element;
    task.dtype = x.dtype;
    task.n = range.end - range.begin;
    task.k = std::min(task.n, k.empty() ? width : k[static_cast<size_t>(row)]);
    task.sorted = options.sorted;
    task.largest = options.largest;
    if (out.values != nullptr) {
      task.values = static_cast<uint8_t*>(out.values) + row * out.values_stride * element;
    }
    if (out.wide_indices != nullptr) {
      task.wide_indices = out.wide_indices + row * out.indices_stride;
      task.indices = reinterpret_cast<int32_t*>(task.wide_indices) + task.k;
    } else {
      task.indices = out.indices + row * out.indices_stride;
    }
    task.stats = out.stats != nullptr ? out.stats + row : nullptr;
    if (task.n > 0 && options.algorithm != Algorithm::kLaneSort) {
      task.plan = PlanBuckets(task.n, task.k);
    }
    return task;
  }

  // -inf, or +inf beside the smallest, and -1 in the columns past a row's k.
  void PadRow(const RowTask& task) const {
    if (task.wide_indices != nullptr) {
      std::fill(task.wide_indices + task.k, task.wide_indices + width, -1);
    } else {
      std::fill(task.indices + task.k, task.indices + width, -1);
    }
    if (task.values == nullptr) {
      return;
    }
    const uint32_t inf = x.dtype == DType::kF32   ? 0x7f800000u
                         : x.dtype == DType::kF16 ? 0x7c00u
                                                  : 0x7f80u;
    const uint32_t sign = x.dtype == DType::kF32 ? 0x80000000u : 0x8000u;
    const uint32_t padding = task.largest ? inf | sign : inf;
    const size_t element = SizeOf(x.dtype);
    for (int64_t i = task.k; i < width; ++i) {  // little-endian; of any alignment
      std::memcpy(static_cast<uint8_t*>(task.values) + static_cast<size_t>(i) * element, &padding,
                  element);
    }
  }
};

}  // namespace riffle::topk
