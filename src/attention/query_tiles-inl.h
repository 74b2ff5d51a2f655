// The queries of a work item: which keys their rows see, and packing them in tiles. Included
// once per SIMD target.
#if defined(RIFFLE_ATTENTION_QUERY_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_QUERY_TILES_INL_H_
#undef RIFFLE_ATTENTION_QUERY_TILES_INL_H_
#else
#define RIFFLE_ATTENTION_QUERY_TILES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "attention/kv_rows.h"
#include "attention/query_block-inl.h"
#include "attention/work_item_scratch-inl.h"
#include "attention/work_item_state-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// Rows that pass through the kernels together, their lanes, the keys that any of them sees and the
// keys that all of them see.
struct Tile {
  int row;  // the first one, in the work item; also its lane, since earlier tiles are full
  int rows;
  int lanes;
  KeyRange any;
  KeyRange all;
};

// Rows are the queries of a KV head's group, token by token.
template <class Math>
class WorkItemQueries {
  using Operand = typename Math::Operand;

 public:
  // `scratch` outlives this; BeginItem fills its `first`, `last` and `q`.
  WorkItemQueries(const AttentionArgs& args, const WorkItemScratch<Math>& scratch)
      : args_(args), scratch_(scratch) {}

  // `seen`: keys that any row sees. If none, nothing is packed.
  void BeginItem(const WorkItem& item, const WorkItemShape& shape, const KeyRange& seen) {
    item_ = &item;
    rows_ = shape.rows;
    lanes_ = shape.lanes;
    if (seen.empty()) {
      return;
    }
    const int position = args_.kv_lens[item.seq] - args_.q_len(item.seq) + item.query_begin;
    for (int lane = 0; lane < lanes_; ++lane) {
      const int row = std::min(lane, rows_ - 1);
      const KeyRange keys = args_.VisibleKeys(item.seq, position + row / args_.shape.group);
      scratch_.first[lane] = keys.begin;
      scratch_.last[lane] = keys.end;
    }
    for (int head = 0; head < shape.heads; ++head) {
      ForEachTile([&](const Tile& tile) { Place(head, tile); });
    }
  }

  template <typename F>
  void ForEachTile(const F& f) const {
    for (int row = 0; row < rows_; row += kTileRows) {
      const int rows = std::min(kTileRows, rows_ - row);
      const int end = row + rows - 1;
      f(Tile{row,
             rows,
             TileLanes(rows),
             {scratch_.first[row], scratch_.last[end]},
             {scratch_.first[end], scratch_.last[row]}});
    }
  }

  // A tile as [operands][lanes]; lanes without a row are 0.
  Operand* Packed(int head, const Tile& tile) const {
    return scratch_.q + (int64_t{head} * lanes_ + tile.row) * operands();
  }

  // Where a row of the work item lies in q and in the results.
  int64_t Token(int row) const {
    return args_.first_token(item_->seq) + item_->query_begin + row / args_.shape.group;
  }
  int64_t Head(int head, int row) const {
    return int64_t{item_->head_begin + head} * args_.shape.group + row % args_.shape.group;
  }

 private:
  int operands() const { return args_.shape.head_dim / Math::kPerOperand; }

  void Place(int head, const Tile& tile) {
    Prefetch(head, tile.row + tile.rows);
    const uint8_t* rows[kTileRows];
    for (int row = 0; row < tile.lanes; ++row) {
      rows[row] = row < tile.rows ? Query(head, tile.row + row) : kZeroRow;
    }
    // The sign of the scale goes into the queries, so that the factor of scores is positive and the
    // largest score is the largest logit.
    PackQueryRows(Math(), args_.q_dtype, rows, operands(), args_.scale_sign(), tile.lanes,
                  Packed(head, tile));
  }

  // Prefetches the next tile's queries into L2: 32 rows are read a few words at a time, which the
  // hardware's prefetchers do not follow.
  void Prefetch(int head, int row) const {
    const size_t bytes = static_cast<size_t>(args_.shape.head_dim) * SizeOf(args_.q_dtype);
    for (const int end = std::min(row + kTileRows, rows_); row < end; ++row) {
      const uint8_t* from = Query(head, row);
      for (size_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(from + i, 0, 2);
      }
    }
  }

  const uint8_t* Query(int head, int row) const {
    return args_.q + Token(row) * args_.q_token_stride + Head(head, row) * args_.q_head_stride;
  }

  const AttentionArgs& args_;
  const WorkItemScratch<Math>& scratch_;
  const WorkItem* item_ = nullptr;
  int rows_ = 0;
  int lanes_ = 0;
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
