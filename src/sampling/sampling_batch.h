// A call of sampling, seen row by row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "riffle/sampling.h"
#include "sampling/sampling_kernels.h"
#include "sampling/sampling_plan.h"
#include "topk/topk_kernels.h"

namespace riffle::sampling {

// A parameter is given for each row, once for all rows, or not at all.
template <typename T>
T ValueForRow(std::span<const T> list, int64_t row, T otherwise) {
  return list.empty() ? otherwise : list[list.size() == 1 ? 0 : static_cast<size_t>(row)];
}

// The best columns of a row, best first.
struct Candidates {
  uint8_t* values = nullptr;  // of the row's dtype
  int32_t* indices = nullptr;
  int64_t count = 0;
};

// The work of a call for each row. All arguments have been checked.
struct SamplingBatch {
  MatrixView logits;
  const SampleOptions& options;
  const bool draws;  // false: rows are only filtered
  const SamplingKernels& kernels;
  const topk::TopKKernels& topk;
  size_t element;  // bytes
  int64_t blocks;  // of each row's sums

  SamplingBatch(const MatrixView& call_logits, const SampleOptions& call_options,
                bool call_draws = true);

  RowPlan Plan(int64_t row) const;
  // The random number, in [0, 1), for the row's draw; `which` = 1: a second, independent one.
  double Random(int64_t row, size_t which = 0) const;
  const uint8_t* RowData(int64_t row) const {
    return static_cast<const uint8_t*>(logits.data) +
           row * logits.row_stride * static_cast<int64_t>(element);
  }
  // Block `block` has the columns [BlockBegin, BlockEnd).
  int64_t BlockBegin(int64_t block) const { return block * kSumBlock; }
  int64_t BlockEnd(int64_t block) const;

  // Finds the row's best out.count columns on this thread, in `scratch` of TopKScratch bytes.
  void FindBest(int64_t row, const Candidates& out, uint8_t* scratch) const;
  size_t TopKScratch(int64_t row, int64_t count) const;

 private:
  topk::RowTask TopKTask(int64_t row, const Candidates& out) const;
};

}  // namespace riffle::sampling
