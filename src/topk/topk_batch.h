// A call of top-k as the kernels' tasks, row by row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_args.h"
#include "topk/topk_plan.h"

namespace riffle::topk {

// What a call does to each row; everything in it has been checked.
struct TopKBatch {
  MatrixView x;
  TopKOut out;
  const TopKOptions& options;
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

  // Whether all rows are whole and have the same k.
  bool uniform() const { return k.empty() && ends.empty(); }

  // The work of one row.
  RowTask Task(int64_t row) const;

  // Whether a kernel is needed for it: not for an empty range, nor for one that is answered in the
  // order of its columns.
  bool HasWork(const RowTask& task) const { return task.n > 0 && !InIndexOrder(task); }

  // After the kernels: what they do not write of a row. Ids take the place of columns; the columns
  // past the row's k are padded with -1 and -inf (see PadBits).
  void FinishRow(int64_t row, const RowTask& task) const;

  // Ids take the place of the columns in a row's indices [0, count).
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

// The bits that pad values: of -inf, or of the lowest integer; beside the smallest of +inf, or of
// the highest integer.
uint64_t PadBits(DType dtype, bool largest);

}  // namespace riffle::topk
