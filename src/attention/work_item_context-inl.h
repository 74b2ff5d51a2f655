// What SingleTile, ManyTiles and FewKeys share: the work item's rows, their states, and how a
// tile's values are added. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_WORK_ITEM_CONTEXT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_WORK_ITEM_CONTEXT_INL_H_
#undef RIFFLE_ATTENTION_WORK_ITEM_CONTEXT_INL_H_
#else
#define RIFFLE_ATTENTION_WORK_ITEM_CONTEXT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "attention/attention_kernels.h"
#include "attention/kv_source-inl.h"
#include "attention/query_tiles-inl.h"
#include "attention/tile_softmax-inl.h"
#include "attention/values-inl.h"
#include "attention/work_item_scratch-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

template <class Math>
struct WorkItemContext {
  using Operand = typename Math::Operand;
  static constexpr int kGroupSteps = kGroupKeys / Math::kPerOperand;

  WorkItemContext(const AttentionArgs& call, const Plan& plan, uint8_t* memory)
      : args(call),
        key_stride(KeyStride<Math>(call.keys.dim)),
        value_stride(ValueStride(PaddedDim(call.values.dim))),
        scratch(Placed(call, plan, memory)),
        keys(args, args.keys, scratch.key_scales),
        values(args, args.values, scratch.value_scales),
        queries(args, scratch),
        softmax(args, scratch, keys, values) {
    shape.columns = PaddedDim(args.values.dim);
    // Columns past head_dim stay 0.
    for (int row = 0; row < kBlock / Math::kPerOperand; ++row) {
      std::fill(scratch.values + row * value_stride + args.values.dim,
                scratch.values + (row + 1) * value_stride, Operand{0});
    }
  }
  WorkItemContext(const WorkItemContext&) = delete;
  WorkItemContext& operator=(const WorkItemContext&) = delete;

  void BeginItem(const WorkItem& entered) {
    item = &entered;
    seen = WorkItemKeys(args, entered);
    shape.heads = entered.head_end - entered.head_begin;
    shape.rows = (entered.query_end - entered.query_begin) * args.shape.group;
    shape.lanes = WorkItemLanes(shape.rows);
    queries.BeginItem(entered, shape, seen);
  }

  // The rows of group `group` of a block; those outside of `range` are zeros.
  RowsAt Group(int head, int key0, int group, const KeyRange& range) const {
    return {item->seq, item->head_begin + head, key0 + group * kGroupKeys, range};
  }

  // Empty (begin >= end) if no row of the tile sees any key of the block.
  TileBlock MakeTileBlock(int head, int key0, const Tile& tile) const {
    TileBlock block{};
    block.head = head;
    block.key0 = key0;
    block.begin = std::max({tile.any.begin, seen.begin, key0}) / kGroupKeys * kGroupKeys - key0;
    const int seen_end = std::min({tile.any.end, seen.end, key0 + kBlock});
    block.end = (seen_end - key0 + kGroupKeys - 1) / kGroupKeys * kGroupKeys;
    block.hidden_by_position =
        tile.all.begin > key0 + block.begin || tile.all.end < key0 + block.end;
    block.has_hidden_keys = block.hidden_by_position;
    block.overwrite_sums =
        key0 == std::max({tile.any.begin, seen.begin, split_key0}) / kBlock * kBlock;
    if (args.mask.data != nullptr && block.begin < block.end) {
      ApplyMask(block, tile);
    }
    return block;
  }

  // Before the first block of a KV split.
  void BeginSplit(int first_key) {
    split_key0 = first_key;
    scratch.split.Clear(shape);
    if (args.mask.data != nullptr) {  // which decides which block is a tile's first
      std::fill_n(scratch.has_sums, shape.heads * shape.lanes, uint8_t{0});
    }
  }

  // Scores -> probabilities and states. Returns whether earlier sums are to be corrected.
  bool Softmax(const TileBlock& block, const Tile& tile) const {
    if (block.masked || args.slopes != nullptr) {
      MakeBias(block, tile);
    }
    const int state = block.head * shape.lanes + tile.row;
    const bool changed = softmax.Run(
        block, tile, {scratch.split.max + state, scratch.split.weight + state, scratch.correction});
    return changed && !block.overwrite_sums;
  }

  // The product of the block's probabilities with values packed from `v` on.
  ValueProduct<Math> Product(const TileBlock& block, const Tile& tile, const Operand* v) const {
    return {.p = scratch.p + block.begin / Math::kPerOperand * tile.lanes,
            .lanes = tile.lanes,
            .v = v,
            .stride = value_stride,
            .steps = (block.end - block.begin) / Math::kPerOperand,
            .sums = Sums(block, tile),
            .columns = shape.columns,
            .begin_column = 0,
            .end_column = shape.columns,
            .overwrite_sums = block.overwrite_sums,
            .correction = nullptr};
  }
  float* Sums(const TileBlock& block, const Tile& tile) const {
    return scratch.split.sums + (int64_t{block.head} * shape.rows + tile.row) * shape.columns;
  }

  // Packs the values of groups [begin, end) of a block to `to`, as operands of the value product.
  void PackValues(int head, int key0, int begin, int end, const KeyRange& range,
                  Operand* to) const {
    for (int group = begin; group < end; ++group, to += kGroupSteps * value_stride) {
      values.PackColumns(Group(head, key0, group, range), value_stride, scratch.decoded, to);
    }
  }

  // For blocks where a value that some rows see and others do not is NaN or infinite: 0 times it is
  // NaN. Packs values anew for each row, with 0 for keys that it does not see. `v` is product.v.
  void AddRowByRow(const TileBlock& block, int begin, int end, const Tile& tile,
                   const ValueProduct<Math>& product, Operand* v) const {
    const int first_group = begin / kGroupKeys;
    const int last_group = end / kGroupKeys;
    for (int row = 0; row < tile.rows; ++row) {
      const KeyRange range{std::max(scratch.first[tile.row + row], seen.begin),
                           std::min(scratch.last[tile.row + row], seen.end)};
      PackValues(block.head, block.key0, first_group, last_group, range, v);
      if (block.masked) {
        ClearHidden(begin, end, tile.lanes, row, v);
      }
      ValueProduct<Math> of_row = product;
      of_row.p += row;
      of_row.sums += row * shape.columns;
      of_row.correction += product.correction != nullptr ? row : 0;
      AddValues(of_row, 1, block.key0 + begin, scratch.first + tile.row + row,
                scratch.last + tile.row + row);
    }
    // Packs all values again, for the next tile or the next columns.
    PackValues(block.head, block.key0, first_group, last_group, seen, v);
  }

  const AttentionArgs& args;
  const int key_stride;
  const int value_stride;
  const WorkItemScratch<Math> scratch;
  const KvSource<Math> keys;
  const KvSource<Math> values;
  WorkItemQueries<Math> queries;
  const TileSoftmax<Math> softmax;

  // State of the work item in hand.
  const WorkItem* item = nullptr;
  KeyRange seen{0, 0};  // that any of its rows sees
  WorkItemShape shape;
  int split_key0 = 0;  // the first key of the KV split in hand

  // Whether the mask hides a key of the block from a row of the tile; once MakeBias has run.
  bool Hides(const TileBlock& block, int key, int row, int lanes) const {
    return block.masked && scratch.bias[key * lanes + row] == kMinusInf;
  }

 private:
  void ApplyMask(TileBlock& block, const Tile& tile) const {
    const int group = args.shape.group;
    const int first = item->query_begin + tile.row / group;
    const int last = item->query_begin + (tile.row + tile.rows - 1) / group;
    const uint8_t code =
        MaskCodeOf(args, item->seq, first, last + 1, item->head_begin + block.head, block.key0);
    // Groups at both ends that no row sees are left out.
    const auto group_code = [code](int key) { return code >> (key / kGroupKeys); };
    while (block.begin < block.end && (group_code(block.begin) & 0x10) == 0) {
      block.begin += kGroupKeys;
    }
    while (block.begin < block.end && (group_code(block.end - 1) & 0x10) == 0) {
      block.end -= kGroupKeys;
    }
    block.masked = false;
    for (int key = block.begin; key < block.end; key += kGroupKeys) {
      block.masked |= (group_code(key) & 1) != 0;
    }
    block.has_hidden_keys |= block.masked;
    if (block.begin < block.end) {
      uint8_t& has_sums = scratch.has_sums[block.head * shape.lanes + tile.row];
      block.overwrite_sums = has_sums == 0;
      has_sums = 1;
    }
  }

  void MakeBias(const TileBlock& block, const Tile& tile) const {
    const int kv_len = args.kv_lens[item->seq];
    const int first = kv_len - args.q_len(item->seq) + item->query_begin;
    FillBias(
        args.mask, block.masked, args.slopes, block.key0, block.begin, block.end,
        kv_len - block.key0, tile.rows, tile.lanes,
        [&](int row) {
          return BiasRow{queries.Token(tile.row + row), queries.Head(block.head, tile.row + row),
                         first + (tile.row + row) / args.shape.group};
        },
        scratch.bias);
  }

  // Sets to 0 the packed values of the keys of [begin, end) that the mask hides from a row.
  void ClearHidden(int begin, int end, int lanes, int row, Operand* v) const {
    for (int key = begin; key < end; ++key) {
      if (scratch.bias[key * lanes + row] == kMinusInf) {
        ClearPackedKey(Math(), key - begin, value_stride, v);
      }
    }
  }

  static WorkItemScratch<Math> Placed(const AttentionArgs& call, const Plan& plan,
                                      uint8_t* memory) {
    WorkItemScratch<Math> placed;
    placed.Place(call, plan, memory);
    return placed;
  }
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
