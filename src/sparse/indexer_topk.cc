// IndexerTopK: finds which keys may be selected, then searches them.
#include <algorithm>
#include <new>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/order.h"
#include "core/targets.h"
#include "riffle/indexer.h"
#include "sparse/indexer_args.h"
#include "sparse/indexer_check.h"
#include "sparse/indexer_kernels.h"
#include "sparse/indexer_plan.h"
#include "sparse/make_indexer_args.h"

namespace riffle {
namespace {

using sparse::IndexerArgs;
using sparse::IndexerItem;
using sparse::IndexPlanner;
using sparse::NamedBytes;
using sparse::PlannedIndex;
using sparse::QueryRange;
using sparse::SelectArgs;

// The shared memory of a call, after that of the batch.
struct SharedLayout {
  core::ScratchArray<int32_t> visible;              // [tokens]
  core::ScratchArray<int64_t> unscored_counts;      // [tokens], see NarrowOrFinish
  core::ScratchArray<int32_t> candidates;           // [tokens][candidate blocks]
  core::ScratchArray<std::atomic<int32_t>> bounds;  // [tokens]
  core::ScratchArray<int64_t> counts;               // [items][kQueryBlock]
  core::ScratchArray<int32_t> order_keys;           // [items][kQueryBlock][limit]
  core::ScratchArray<int32_t> blocks;               // likewise
  size_t bytes = 0;

  SharedLayout(size_t begin, int64_t tokens, int64_t candidate_blocks, int64_t items,
               int64_t limit) {
    core::ScratchLayout layout((begin + 63) / 64 * 64);
    visible = layout.Place<int32_t>(tokens);
    unscored_counts = layout.Place<int64_t>(tokens);
    candidates = layout.Place<int32_t>(core::SaturatingMul(tokens, candidate_blocks));
    bounds = layout.Place<std::atomic<int32_t>>(items > 0 ? tokens : 0);
    counts = layout.Place<int64_t>(items * sparse::kQueryBlock);
    order_keys = layout.Place<int32_t>(items * sparse::kQueryBlock * limit);
    blocks = layout.Place<int32_t>(items * sparse::kQueryBlock * limit);
    bytes = layout.bytes();
  }
};

// Copies a query's candidates to `list` as blocks in ascending order, each once, without forced
// ones and those that the query does not see. Returns how many.
int64_t CopyCandidates(const IndexTopKOptions& options, const SelectArgs& select, int64_t token,
                       int32_t* list) {
  const int32_t* from = options.candidates + token * options.candidate_stride;
  const int64_t span = options.candidate_span;
  const int64_t first = select.Head(token);
  const int64_t last = select.Blocks(token) - select.Tail(token);
  int64_t count = 0;
  for (int64_t i = 0; i < options.candidate_cols; ++i) {
    const int64_t candidate = from[i];
    if (candidate < 0) {
      continue;
    }
    const int64_t begin = std::max(first, candidate * span);
    const int64_t end = std::min(last, (candidate + 1) * span);
    for (int64_t block = begin; block < end && count < options.candidate_cols * span; ++block) {
      list[count++] = static_cast<int32_t>(block);
    }
  }
  if (!std::is_sorted(list, list + count)) {
    std::sort(list, list + count);
  }
  return std::unique(list, list + count) - list;
}

// Narrows a query's range to the keys of blocks that compete by score, and returns -1. If nothing
// needs scores, empties the range and returns how many blocks join the forced members.
int64_t NarrowOrFinish(const IndexTopKOptions& options, const SelectArgs& select, int64_t token,
                       int32_t* list, QueryRange* range) {
  const int64_t head = select.Head(token);
  const int64_t tail = select.Tail(token);
  const int64_t blocks = select.Blocks(token);
  const int64_t visible = select.visible[token];
  int64_t count = blocks - head - tail;
  int64_t begin = std::min(visible, head * select.block);
  int64_t end = tail > 0 ? (blocks - tail) * select.block : visible;
  if (list != nullptr) {
    count = CopyCandidates(options, select, token, list);
    begin = 0;
    end = count * select.block;
    if (count > 0 && list[count - 1] == blocks - 1) {
      end -= blocks * select.block - visible;
    }
  }
  const int64_t wanted = select.k - head - tail;
  if (count <= wanted || wanted == 0) {
    *range = {range->seq, 0, 0};
    return std::min(count, wanted);
  }
  *range = {range->seq, static_cast<int32_t>(begin), static_cast<int32_t>(end)};
  return -1;
}

void Run(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
         const IndexPlanner& planner, int64_t k, const OutView<int32_t>& indices,
         const IndexTopKOptions& options, core::Lease& lease) {
  const bool has_candidates = options.candidates != nullptr;
  const int64_t candidate_blocks =
      has_candidates ? options.candidate_cols * options.candidate_span : 0;
  const int64_t groups = has_candidates ? q.tokens : planner.groups();
  const int64_t max_blocks = (planner.max_keys() + options.block - 1) / options.block;
  const int64_t splits = sparse::PlanSplits(groups, planner.max_keys(), lease.threads());
  const int64_t items = groups * splits;
  const sparse::SelectScratch sizes = sparse::PlanSelectScratch(k, max_blocks, splits, 0);
  const SharedLayout shared(planner.bytes(), q.tokens, candidate_blocks, splits > 1 ? items : 0,
                            sizes.limit);
  uint8_t* memory = lease.Shared(shared.bytes);
  PlannedIndex plan = planner.Place(memory);
  IndexerArgs args = sparse::MakeIndexerArgs(q, weights, keys, options.activation, plan);
  SelectArgs select;
  select.k = k;
  select.block = options.block;
  select.block_score = options.block_score;
  select.first_blocks = options.first_blocks;
  select.local_blocks = options.local_blocks;
  select.incomplete_tail = options.incomplete_tail;
  select.slots = options.slots;
  select.visible = shared.visible.At(memory);
  select.indices = indices;
  if (has_candidates) {
    args.candidates = shared.candidates.At(memory);
    args.candidate_stride = candidate_blocks;
    args.candidate_block = options.block;
  }
  const sparse::IndexerKernels& kernels = sparse::GetIndexerKernels(args.product);
  const sparse::ScoreScratch layout = sparse::PlanScoreScratch(args.heads, args.operands());
  const sparse::SelectScratch lists =
      sparse::PlanSelectScratch(k, max_blocks, splits, layout.bytes);
  lease.ReserveScratch(lists.bytes);
  sparse::SplitCandidates kept{shared.counts.At(memory), shared.bounds.At(memory),
                               shared.order_keys.At(memory), shared.blocks.At(memory)};
  int64_t* unscored_counts = shared.unscored_counts.At(memory);
  lease.Run(groups, [&](int64_t group, uint8_t*) {
    const sparse::QueryGroup queries =
        has_candidates
            ? sparse::QueryGroup{static_cast<int32_t>(group), static_cast<int32_t>(group) + 1}
            : plan.groups[static_cast<size_t>(group)];
    for (int64_t token = queries.begin; token < queries.end; ++token) {
      QueryRange& range = plan.ranges[static_cast<size_t>(token)];
      shared.visible.At(memory)[token] = range.end;
      unscored_counts[token] = NarrowOrFinish(
          options, select, token,
          has_candidates ? shared.candidates.At(memory) + token * candidate_blocks : nullptr,
          &range);
      if (unscored_counts[token] >= 0) {
        kernels.write_all(args, select, token, unscored_counts[token]);
      } else if (splits > 1) {
        new (kept.bounds + token) std::atomic<int32_t>(core::kF32Format.lowest_key());
      }
    }
  });
  const auto item_of = [&](int64_t index) {
    return has_candidates ? sparse::ItemOfToken(plan, index, splits, options.block)
                          : sparse::ItemOf(plan, index, splits, options.block);
  };
  lease.Run(items, [&](int64_t task, uint8_t* scratch) {
    const IndexerItem item = item_of(items - 1 - task);
    if (item.begin < item.end) {
      kernels.search(args, select, item, splits > 1 ? &kept : nullptr, layout, lists, scratch);
    } else if (splits > 1) {
      std::fill_n(kept.counts + item.index * sparse::kQueryBlock, sparse::kQueryBlock, 0);
    }
  });
  if (splits == 1) {
    return;
  }
  lease.Run(groups, [&](int64_t group, uint8_t* scratch) {
    const sparse::QueryGroup queries = item_of(group * splits).queries;
    for (int64_t token = queries.begin; token < queries.end; ++token) {
      if (unscored_counts[token] < 0) {
        kernels.finish(args, select, token, static_cast<int>(token - queries.begin), group * splits,
                       splits, kept, lists, scratch);
      }
    }
  });
}

}  // namespace

void IndexerTopK(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
                 const PagedBatch& batch, int64_t k, const OutView<int32_t>& indices,
                 const IndexTopKOptions& options) try {
  const core::EntryPoint entry;
  sparse::CheckIndexer(q, weights, keys);
  core::Check(options.activation <= IndexActivation::kNone, Code::kBadOption,
              "activation = ", static_cast<int>(options.activation), " is unknown");
  sparse::CheckIndexBatch(batch, keys, q.tokens, options.ratio);
  sparse::CheckSelect(options, k, q.tokens);
  core::Check(
      !options.slots || core::SaturatingMul(keys.num_pages, keys.page_size) <= int64_t{INT32_MAX},
      Code::kBadShape, "keys.num_pages = ", keys.num_pages,
      " times keys.page_size = ", keys.page_size, " slots are beyond int32");
  if (q.tokens > 0) {
    core::Check(indices.data != nullptr, Code::kBadShape, "indices is null");
    const NamedBytes inputs[] = {
        {"q", sparse::HeadsBytes(q)},
        {"weights",
         sparse::RowsBytes(weights.data, q.tokens, weights.token_stride, q.heads, sizeof(float))},
        {"keys", sparse::KeyBytes(keys)},
        {"keys.scales", sparse::ScaleBytes(keys)},
        {"kv_lens", sparse::SpanBytes(batch.kv_lens)},
        {"cu_q_lens", sparse::SpanBytes(batch.cu_q_lens)},
        {"page_table", sparse::TableBytes(batch)},
        {"candidates", sparse::RowsBytes(options.candidates, q.tokens, options.candidate_stride,
                                         options.candidate_cols, sizeof(int32_t))}};
    sparse::CheckOutput(
        {"indices", sparse::RowsBytes(indices.data, q.tokens, indices.row_stride, k, 4)}, inputs);
  }
  core::EnsureTarget();
  const IndexPlanner planner(batch, keys, q.tokens, options.ratio);
  core::Lease lease(options.pool);
  Run(q, weights, keys, planner, k, indices, options, lease);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
