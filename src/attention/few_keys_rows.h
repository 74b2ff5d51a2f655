// Which work items have few keys, and where these lie.
#pragma once

#include <cstdint>

#include "attention/attention_args.h"
#include "attention/kv_rows.h"

namespace riffle::attention {

// FewKeys takes up to this many rows side by side. 32: a vector of 16 is a single chain of products
// for each key, which leaves the multipliers waiting.
inline constexpr int kFewKeysLanes = 32;

// From this many rows of a head on, FewKeys packs the head's keys once for all of them.
inline constexpr int kFewKeysSharedRows = 8;

// FewKeys takes sequences of up to this many keys.
inline constexpr int kMaxFewKeys = 16;

// Whether FewKeys runs a work item: all rows begin at key 0, in one KV split, and elements have no
// scales. It spends 15 to 25 cycles on a key of a row at head_dim 80, and little on a head; the
// other strategies spend 1500 and more on a head, so they win with many rows of more than a few
// keys.
inline bool HasFewKeys(const AttentionArgs& args, const WorkItem& item) {
  const int keys = args.kv_lens[item.seq];
  const int rows = (item.query_end - item.query_begin) * args.shape.group;
  return keys >= 1 && keys <= kMaxFewKeys && (keys <= 4 || rows * keys <= 32) &&
         item.state_row < 0 && (args.shape.window == 0 || args.shape.window >= keys) &&
         args.keys.code <= RowCode::kBF16 && args.values.code <= RowCode::kBF16 &&
         args.keys.scales_per_row == 0 && args.values.scales_per_row == 0;
}

// Bytes from a head's first row to the row of position `key`.
inline int64_t FewKeysRow(const AttentionArgs& args, const KvBytes& kv, int seq, int key) {
  const int page = PageOf(args, key);
  const int64_t number = args.page_numbers[args.page_begin[seq] + page];
  return number * kv.page_stride + int64_t{key - page * args.page_size} * kv.token_stride;
}

}  // namespace riffle::attention
