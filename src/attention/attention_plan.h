// How a call is cut into work items: a pure function of shapes, lengths and the number of threads.
// No cut changes a bit of the result, because each KV split of kKvSplit keys has a state of its own
// and states are merged in the order of the KV splits, whichever thread computes them.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/indices.h"

namespace riffle::attention {

// Keys are taken in blocks counted from position 0, and blocks in KV splits. 64: blocks of 128 keys
// of eight heads no longer leave room in L2 for what is prefetched. 512: that many additions in
// sequence keep f32 sums within 2e-5 whatever the data, and KV splits of 512 cost under 3 % against
// a single one (docs/lab/attention.md).
inline constexpr int kBlock = 64;
inline constexpr int kKvSplit = 512;

inline constexpr int kMaxHeadDim = 1024;

// Rows (query, head of the group) that pass through the kernels together.
inline constexpr int kTileRows = 32;
// Rows of a work item: each block of keys and values is packed once for this many rows, or for
// twice as many where heads are small and work items many.
inline constexpr int kItemRows = 256;

struct AttentionShape {
  int kv_heads;
  int group;         // query heads of a KV head
  int head_dim;      // of queries and keys
  int window;        // a query at p sees no key before p - window + 1; 0: no limit
  int window_right;  // and none after p + window_right; < 0: no limit

  bool operator==(const AttentionShape&) const = default;
};

// The shape for the causal sequences of a batch in which others are not.
inline AttentionShape Causal(AttentionShape shape) {
  shape.window_right = 0;
  return shape;
}

// Value columns, padded to whole vectors of any target.
constexpr int PaddedDim(int head_dim) { return (head_dim + 31) / 32 * 32; }

// Lanes of a tile of `rows` rows, 1 <= rows <= kTileRows.
constexpr int TileLanes(int rows) { return rows <= 4 ? 4 : rows <= 8 ? 8 : rows <= 16 ? 16 : 32; }

// Lanes of all tiles of `rows` rows, padded so that those of the next head are aligned as well.
constexpr int WorkItemLanes(int rows) {
  return rows <= 8 ? TileLanes(rows) : (rows + 15) / 16 * 16;
}

// Rows that a state of `heads` KV heads with `rows` rows each takes: eight rows of any length are a
// multiple of 64 bytes, so the next state is aligned too. Not in bytes, since a plan does not know
// the columns of values.
constexpr int64_t PartialStateRows(int heads, int rows) {
  return (int64_t{heads} * rows + 7) / 8 * 8;
}

struct KeyRange {
  int begin;
  int end;
  bool empty() const { return begin >= end; }
};

// Keys that the query at `position` of a sequence of kv_len keys sees. Both ends ascend with the
// position, which is negative only where neither window is set.
inline KeyRange VisibleKeys(const AttentionShape& shape, int kv_len, int position) {
  KeyRange range{0, kv_len};
  if (shape.window_right >= 0 && shape.window_right < kv_len - 1 - position) {
    range.end = position + 1 + shape.window_right;
  }
  if (shape.window > 0 && position >= shape.window) {
    range.begin = position - shape.window + 1;
  }
  return range;
}

// The queries [query_begin, query_end) of sequence `seq`, some KV heads, some KV splits.
// state_row < 0: the item covers all KV splits that its queries see and writes results. Otherwise
// its partial states begin there: a single one if `merges_splits`, else one for each KV split.
struct WorkItem {
  int32_t seq;
  int32_t query_begin, query_end;
  int32_t head_begin, head_end;  // KV heads
  int32_t split_begin, split_end;
  bool merges_splits;      // whether KV splits are merged into one state
  int64_t state_row = -1;  // in rows of states (PartialStateRows)
};

// Queries and heads whose KV splits are divided among several work items. `whole` is one item that
// covers all of these. Their partial states are in order, from whole.state_row on.
struct DividedItem {
  WorkItem whole;
  int64_t partial_states;
};

struct Plan {
  int64_t items = 0;
  int64_t divided_items = 0;
  int64_t chunks = 0;      // tasks; chunk c is work items [chunk_begin[c], chunk_begin[c + 1])
  int64_t state_rows = 0;  // of all states (PartialStateRows)
  int max_rows = 0;        // of a work item
  int max_head_rows = 0;   // KV heads times rows of a work item, the largest
  int max_head_lanes = 0;  // KV heads times WorkItemLanes(rows), the largest
};

// The arrays that a plan is written to. A first call with empty spans returns their sizes. Nothing
// is written past their ends.
struct PlanOut {
  std::span<WorkItem> items;
  std::span<DividedItem> divided_items;
  std::span<int64_t> chunk_begin;  // [chunks + 1]
};

// cu_q_lens is [B + 1], or empty: one query per sequence. `causal` as in PagedBatch.
Plan PlanAttention(const AttentionShape& shape, const IndexSpan& cu_q_lens,
                   const IndexSpan& kv_lens, int threads, const PlanOut& out,
                   std::span<const uint8_t> causal = {});

}  // namespace riffle::attention
