// A call of top-k, divided into the kernels' tasks row by row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_args.h"
#include "topk/topk_plan.h"

namespace riffle::topk {

// What a call does to each row. All arguments have been checked.
struct TopKBatch {
  MatrixView x;
  TopKOut out;
  const TopKOptions& options;
  int64_t width = 0;                     // columns of the outputs
  std::span<const int32_t> k = {};       // per row; empty: `width` for all
  std::span<const int32_t> starts = {};  // ranges; empty: whole rows
  std::span<const int32_t> ends = {};
  int next_n = 0;  // > 0: `ends` holds the lengths of sequences in decoding

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

  // Whether all rows are whole and have the same k.
  bool uniform() const { return k.empty() && ends.empty(); }

  // The task of one row.
  RowTask Task(int64_t row) const;

  // Whether a task needs a kernel: not if its range is empty, nor if the answer is the columns in
  // their order.
  bool HasWork(const RowTask& task) const { return task.n > 0 && !InIndexOrder(task); }

  // Completes a row after the kernels: replaces columns by their ids, and pads the columns past the
  // row's k with -1 and -inf (see PadBits).
  void FinishRow(int64_t row, const RowTask& task) const;

  // Replaces columns by their ids in the row's indices [0, count).
  void MapIds(int64_t row, int64_t count) const;

  uint8_t* ValuesOf(int64_t row) const {
    return static_cast<uint8_t*>(out.values) +
           row * out.values_stride * static_cast<int64_t>(SizeOf(x.dtype));
  }
  uint8_t* IndicesOf(int64_t row) const {
    return static_cast<uint8_t*>(out.indices) +
           row * out.indices_stride * static_cast<int64_t>(SizeOf(out.index_type));
  }

 private:
  bool InIndexOrder(const RowTask& task) const {
    return options.index_order_if_short && task.n <= width;
  }
};

// The bits of padding values: those of -inf or the lowest integer; when selecting the smallest,
// those of +inf or the highest integer.
uint64_t PadBits(DType dtype, bool largest);

}  // namespace riffle::topk
