// The entry points of top-k: they check the arguments, then run the call.
#include "riffle/topk.h"

#include <algorithm>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/targets.h"
#include "topk/topk_batch.h"
#include "topk/topk_check.h"
#include "topk/topk_run.h"

namespace riffle {
namespace {

// For calls on whole rows, and on ranges of rows: reject the option that only the other kind takes.
void RejectRangeOptions(const TopKOptions& options) {
  core::Check(!options.index_order_if_short, Code::kBadOption,
              "index_order_if_short = true is for TopKPerRow and TopKPerRowDecode");
}
void RejectWholeRowOptions(const TopKOptions& options) {
  core::Check(options.ids.data == nullptr, Code::kBadOption,
              "ids are for TopK; indices of a range are relative to its start");
}

void Run(const topk::TopKBatch& batch) {
  topk::CheckOptions(batch.options, batch.x.dtype);
  topk::CheckOutputs(batch);
  core::EnsureTarget();
  if (batch.x.rows > 0) {
    topk::RunTopK(batch);
  }
}

}  // namespace

void TopK(const MatrixView& x, int64_t k, const TopKOut& out, const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  RejectRangeOptions(options);
  core::Check(k >= 1 && k <= x.cols, Code::kBadK, "k = ", k, " is not in 1..", x.cols,
              ", the columns of x");
  core::Check(out.values != nullptr || x.rows == 0, Code::kBadShape, "values is null");
  Run({.x = x, .out = out, .options = options, .width = k});
} catch (...) {
  core::RethrowAsError();
}

void TopK(const MatrixView& x, std::span<const int32_t> k, const TopKOut& out,
          const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  RejectRangeOptions(options);
  core::Check(static_cast<int64_t>(k.size()) == x.rows, Code::kBadShape, "k has ", k.size(),
              " elements for ", x.rows, " rows");
  int64_t width = 0;
  for (size_t row = 0; row < k.size(); ++row) {
    core::Check(k[row] >= 1 && k[row] <= x.cols, Code::kBadK, "k[", row, "] = ", k[row],
                " is not in 1..", x.cols, ", the columns of x");
    width = std::max<int64_t>(width, k[row]);
  }
  core::Check(out.values != nullptr || x.rows == 0, Code::kBadShape, "values is null");
  Run({.x = x, .out = out, .options = options, .width = width, .k = k});
} catch (...) {
  core::RethrowAsError();
}

void TopKPerRow(const MatrixView& x, std::span<const int32_t> starts, std::span<const int32_t> ends,
                int64_t k, const OutView<int32_t>& indices, const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  RejectWholeRowOptions(options);
  core::Check(k >= 1 && k <= topk::kMaxColumns, Code::kBadK, "k = ", k, " is not in 1..",
              topk::kMaxColumns);
  core::Check(static_cast<int64_t>(starts.size()) == x.rows, Code::kBadShape, "starts has ",
              starts.size(), " elements for ", x.rows, " rows");
  core::Check(static_cast<int64_t>(ends.size()) == x.rows, Code::kBadShape, "ends has ",
              ends.size(), " elements for ", x.rows, " rows");
  for (size_t row = 0; row < starts.size(); ++row) {
    core::Check(starts[row] >= 0, Code::kBadRange, "starts[", row, "] = ", starts[row],
                " is negative");
    core::Check(ends[row] <= x.cols, Code::kBadRange, "ends[", row, "] = ", ends[row],
                " is past the ", x.cols, " columns of x");
  }
  Run({.x = x,
       .out = {.indices = indices.data, .indices_stride = indices.row_stride},
       .options = options,
       .width = k,
       .starts = starts,
       .ends = ends});
} catch (...) {
  core::RethrowAsError();
}

void TopKPerRowDecode(const MatrixView& x, std::span<const int32_t> seq_lens, int next_n, int64_t k,
                      const OutView<int32_t>& indices, const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  RejectWholeRowOptions(options);
  core::Check(k >= 1 && k <= topk::kMaxColumns, Code::kBadK, "k = ", k, " is not in 1..",
              topk::kMaxColumns);
  core::Check(next_n >= 1, Code::kBadOption, "next_n = ", next_n, " is not positive");
  core::Check(x.rows % next_n == 0 && static_cast<int64_t>(seq_lens.size()) == x.rows / next_n,
              Code::kBadShape, "seq_lens has ", seq_lens.size(), " elements for ", x.rows,
              " rows of next_n = ", next_n, " a sequence");
  for (size_t i = 0; i < seq_lens.size(); ++i) {
    core::Check(seq_lens[i] <= x.cols, Code::kBadRange, "seq_lens[", i, "] = ", seq_lens[i],
                " is past the ", x.cols, " columns of x");
  }
  Run({.x = x,
       .out = {.indices = indices.data, .indices_stride = indices.row_stride},
       .options = options,
       .width = k,
       .ends = seq_lens,
       .next_n = next_n});
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
