// The entry points of the indexer: check, plan, run.
#include "riffle/indexer.h"

#include <algorithm>
#include <limits>
#include <span>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/targets.h"
#include "sparse/indexer_args.h"
#include "sparse/indexer_check.h"
#include "sparse/indexer_kernels.h"
#include "sparse/indexer_plan.h"
#include "sparse/make_indexer_args.h"

namespace riffle {
namespace {

using sparse::IndexerArgs;
using sparse::IndexerItem;
using sparse::IndexerKernels;
using sparse::IndexPlanner;
using sparse::NamedBytes;
using sparse::PlannedIndex;

void CheckActivation(IndexActivation activation) {
  core::Check(activation <= IndexActivation::kNone, Code::kBadOption,
              "activation = ", static_cast<int>(activation), " is unknown");
}

// Fills the columns of a group's rows that none of the group's items scores.
void FillOutside(const IndexerItem& item, const IndexLogitsOut& out, bool first, bool last) {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  for (int64_t token = item.queries.begin; token < item.queries.end; ++token) {
    float* row = out.data + token * out.row_stride;
    if (first) {
      std::fill(row, row + item.begin, kMinusInf);
    }
    if (last) {
      std::fill(row + item.end, row + out.cols, kMinusInf);
    }
  }
}

void RunLogits(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
               const IndexPlanner& planner, const IndexLogitsOut& out,
               const IndexerOptions& options, core::Lease& lease) {
  const PlannedIndex plan = planner.Place(lease.Shared(planner.bytes()));
  const IndexerArgs args = sparse::MakeIndexerArgs(q, weights, keys, options.activation, plan);
  const IndexerKernels& kernels = sparse::GetIndexerKernels(args.product);
  const sparse::ScoreScratch layout = sparse::PlanScoreScratch(args.heads, args.operands());
  const int64_t splits = sparse::PlanSplits(planner.groups(), planner.max_keys(), lease.threads());
  lease.ReserveScratch(layout.bytes);
  const int64_t items = planner.groups() * splits;
  // The last queries of a prefill see the most keys: run them first.
  lease.Run(items, [&](int64_t task, uint8_t* scratch) {
    const int64_t index = items - 1 - task;
    const IndexerItem item = sparse::ItemOf(plan, index, splits, 1);
    FillOutside(item, out, index % splits == 0, index % splits == splits - 1);
    if (item.begin < item.end) {
      kernels.logits(args, item, out, layout, scratch);
    }
  });
}

void CheckLogitsOut(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
                    const IndexLogitsOut& out, std::span<const NamedBytes> more) {
  core::Check(out.cols >= 0, Code::kBadShape, "out.cols = ", out.cols, " is negative");
  if (q.tokens == 0 || out.cols == 0) {
    return;
  }
  core::Check(out.data != nullptr, Code::kBadShape, "out.data is null");
  const NamedBytes inputs[] = {
      {"q", sparse::HeadsBytes(q)},
      {"weights",
       sparse::RowsBytes(weights.data, q.tokens, weights.token_stride, q.heads, sizeof(float))},
      {"keys", sparse::KeyBytes(keys)},
      {"keys.scales", sparse::ScaleBytes(keys)}};
  const NamedBytes named = {
      "out", sparse::RowsBytes(out.data, q.tokens, out.row_stride, out.cols, sizeof(float))};
  sparse::CheckOutput(named, inputs);
  sparse::CheckOutput(named, more);
}

}  // namespace

int64_t MaxIndexKeys(const PagedBatch& batch, int64_t ratio) try {
  const core::EntryPoint entry;
  core::Check(ratio >= 1, Code::kBadOption, "ratio = ", ratio, " is not positive");
  int64_t max_keys = 0;
  for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
    const bool asked = batch.cu_q_lens.empty() || (b + 1 < batch.cu_q_lens.size() &&
                                                   batch.cu_q_lens[b + 1] > batch.cu_q_lens[b]);
    max_keys = std::max(max_keys, asked ? batch.kv_lens[b] / ratio : 0);
  }
  return max_keys;
} catch (...) {
  core::RethrowAsError();
}

void IndexerLogits(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
                   const PagedBatch& batch, const IndexLogitsOut& out,
                   const IndexerOptions& options) try {
  const core::EntryPoint entry;
  sparse::CheckIndexer(q, weights, keys);
  CheckActivation(options.activation);
  sparse::CheckIndexBatch(batch, keys, q.tokens, options.ratio);
  const IndexPlanner planner(batch, keys, q.tokens, options.ratio);
  core::Check(out.cols >= planner.max_keys(), Code::kBadShape, "out.cols = ", out.cols,
              " but a query sees ", planner.max_keys(), " keys");
  const NamedBytes more[] = {{"kv_lens", sparse::SpanBytes(batch.kv_lens)},
                             {"cu_q_lens", sparse::SpanBytes(batch.cu_q_lens)},
                             {"page_table", sparse::TableBytes(batch)}};
  CheckLogitsOut(q, weights, keys, out, more);
  core::EnsureTarget();
  core::Lease lease(options.pool);
  RunLogits(q, weights, keys, planner, out, options, lease);
} catch (...) {
  core::RethrowAsError();
}

void IndexerLogits(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
                   std::span<const int32_t> starts, std::span<const int32_t> ends,
                   const IndexLogitsOut& out, const IndexerOptions& options) try {
  const core::EntryPoint entry;
  sparse::CheckIndexer(q, weights, keys);
  CheckActivation(options.activation);
  core::Check(options.ratio == 1, Code::kBadOption, "ratio = ", options.ratio,
              " is not 1; ranges are in keys");
  sparse::CheckRanges(starts, ends, keys, q.tokens);
  core::Check(out.cols >= keys.page_size || q.tokens == 0, Code::kBadShape, "out.cols = ", out.cols,
              " but there are ", keys.page_size, " keys");
  const NamedBytes more[] = {{"starts", sparse::SpanBytes(starts)},
                             {"ends", sparse::SpanBytes(ends)}};
  CheckLogitsOut(q, weights, keys, out, more);
  core::EnsureTarget();
  core::Lease lease(options.pool);
  const IndexPlanner planner(starts, ends);
  RunLogits(q, weights, keys, planner, out, options, lease);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
