// Runs a work item whose rows fit one tile of up to 16 lanes, as in decode: keys and values are
// read in place, or decoded right before they are used, and the next blocks are prefetched while
// kernels run. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_SINGLE_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_SINGLE_TILE_INL_H_
#undef RIFFLE_ATTENTION_SINGLE_TILE_INL_H_
#else
#define RIFFLE_ATTENTION_SINGLE_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "attention/coded_values-inl.h"
#include "attention/key_lanes-inl.h"
#include "attention/small_m-inl.h"
#include "attention/work_item_context-inl.h"
#include "core/bf16_dot.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// Kernels that decode in registers, for some codes of BF16Math.
template <class Math>
struct CodedKernels {
  static constexpr bool kAny = false;
  explicit CodedKernels(const AttentionArgs&) {}
};
#if RIFFLE_BF16_DOT && HWY_CAP_GE512
template <>
struct CodedKernels<BF16Math> {
  static constexpr bool kAny = true;
  explicit CodedKernels(const AttentionArgs& args)
      : keys(FindLaneKernel(args.keys.code, args.keys.dim)),
        decoded_keys(FindLaneKernel(RowCode::kBF16, args.keys.dim)),
        values(FindCodedValuesKernel(args.values.code)),
        // If values lie in keys, tiles of 16 lanes decode both at once, into memory.
        values_in_keys(args.values_in_keys),
        max_lanes(args.values_in_keys && args.keys.code != RowCode::kBF16 ? 8 : 16),
        key_lines(static_cast<int>((args.keys.row_bytes + 63) / 64)) {}

  // Whether a tile's keys are read in place. Otherwise they are decoded into memory.
  bool ReadsKeysInPlace(int lanes) const { return keys.run != nullptr && lanes <= max_lanes; }
  // Whether a tile's values are read in place. Not those of 16 rows, which would decode them twice,
  // nor those that have been decoded with their keys.
  bool ReadsValuesInPlace(int lanes) const {
    return values != nullptr && lanes <= 8 && (ReadsKeysInPlace(lanes) || !values_in_keys);
  }

  const LaneKernel keys;
  const LaneKernel decoded_keys;
  const CodedValuesKernel values;
  const bool values_in_keys;
  const int max_lanes;
  const int key_lines;
};
#endif

template <class Math>
class SingleTile {
  using Operand = typename Math::Operand;
  using Context = WorkItemContext<Math>;

 public:
  explicit SingleTile(const Context& context)
      : context_(context),
        coded_(context.args),
        operands_(context.args.keys.dim / Math::kPerOperand),
        key_step_(AheadStep(context.args.keys, 16 * Math::kPerOperand)),
        value_step_(AheadStep(context.args.values, 16 * Math::kPerOperand)) {}

  // Whether a work item of this shape is run here.
  static bool Fits(const WorkItemShape& shape) { return shape.lanes <= 16; }

  // Runs a block of keys of a KV head. `ahead` is the block that is prefetched.
  void RunBlock(int head, int key0, const TileCursor& ahead) {
    const Context& c = context_;
    if (!ahead.done()) {
      FindTileRows(c.args, ahead, &ahead_rows_);
      prefetches_ = true;
    } else if (prefetches_) {
      ahead_rows_ = TileRows();
      prefetches_ = false;
    }
    c.queries.ForEachTile([&](const Tile& tile) {  // the only one
      const TileBlock block = c.MakeTileBlock(head, key0, tile);
      if (block.begin < block.end) {
        Run(block, tile);
      }
    });
  }

 private:
  void Run(const TileBlock& block, const Tile& tile) {
    const Context& c = context_;
    Score(block, tile);
    if (c.Softmax(block, tile)) {
      for (int row = 0; row < tile.rows; ++row) {
        if (c.scratch.correction[row] != 1.0f) {
          Scale(c.scratch.correction[row], c.shape.columns,
                c.Sums(block, tile) + row * c.shape.columns);
        }
      }
    }
    for (int group = 0; group < kGroupsPerBlock; ++group) {
      if (group * kGroupKeys < block.begin || group * kGroupKeys >= block.end) {
        // No kernel runs on this group that could prefetch meanwhile.
        PrefetchRows(ahead_rows_.keys[group], c.args.keys.row_bytes);
        PrefetchRows(ahead_rows_.values[group], c.args.values.row_bytes);
      }
    }
#if HWY_CAP_GE512  // clang 19 and later reject undeclared names even in `if constexpr`
    if constexpr (Math::kHasInPlaceKernels) {
      // Rows of one query see the same keys, so values need no check for NaN and infinity.
      if (c.args.values.dim % kInPlaceColumns == 0 &&
          (!block.has_hidden_keys || AllRowsSeeSameKeys(block))) {
        AddInPlace(block, tile);
        return;
      }
    }
#endif
    AddPacked(block, tile);
  }

  bool AllRowsSeeSameKeys(const TileBlock& block) const {
    return context_.item->query_end - context_.item->query_begin == 1 &&
           !(block.masked && context_.args.mask.by_head);
  }

  RowsAt Group(const TileBlock& block, int group) const {
    return context_.Group(block.head, block.key0, group, context_.seen);
  }

  // Keys that are read in place are scored all groups of a block at a time: four rows of q times 64
  // keys are 16 chains of products, whereas 8 left the multipliers idle. Keys that are decoded into
  // memory are scored two groups at a time, which leaves room in L1; all are kept if values lie in
  // them.
  static constexpr int kDecodedAtOnce = 2;
  static constexpr bool kKeepsKeys = Math::kPerOperand == 2;  // whose operands are unscaled
  int KeyBufferGroup(int group) const {
    return kKeepsKeys && context_.args.values_in_keys ? group : group % kDecodedAtOnce;
  }

  void Score(const TileBlock& block, const Tile& tile) {
    const Context& c = context_;
    const int end = block.end / kGroupKeys;
    const int at_once = ReadsKeysInPlace(tile) ? kGroupsPerBlock : kDecodedAtOnce;
    for (int group = block.begin / kGroupKeys; group < end;) {
      const int count = std::min(at_once - group % at_once, end - group);
      KvRows* rows = rows_.keys + group;
      for (int i = 0; i < count; ++i) {
        const RowsAt at = Group(block, group + i);
        KvRows* values = rows_.values + group + i;
        c.keys.Rows(at, rows + i);
        c.values.Rows(at, values);
        c.keys.FindScales(at, rows[i], group + i);
        c.values.FindScales(at, *values, group + i);
        Operand* buffer = c.scratch.keys + KeyBufferGroup(group + i) * kGroupKeys * c.key_stride;
        if constexpr (Math::kHasInPlaceKernels) {
          if (!ReadsKeysInPlace(tile)) {
            c.keys.Readable(at, c.key_stride, buffer, rows + i);
          }
        } else {
          c.keys.Decode(at, c.key_stride, buffer);
        }
      }
      ScoreGroups(block, tile, group, count, rows);
      group += count;
    }
  }

  bool ReadsKeysInPlace([[maybe_unused]] const Tile& tile) const {
    if constexpr (CodedKernels<Math>::kAny) {
      return coded_.ReadsKeysInPlace(tile.lanes);
    }
    return false;
  }

  void ScoreGroups(const TileBlock& block, const Tile& tile, int group, int count,
                   const KvRows* rows) {
    const Context& c = context_;
    const int at = group * kGroupKeys * tile.lanes;
    if (c.keys.scales_per_row() < 2 || (ReadsKeysInPlace(tile) && IsBlocks(c.keys.code()))) {
      ScoreOperands(block, tile, group, count, rows, 0, operands_, c.scratch.scores + at);
      return;
    }
    const int step = c.keys.elements_per_scale() / Math::kPerOperand;
    for (int g = 0; g < c.keys.scales_per_row(); ++g) {
      ScoreOperands(block, tile, group, count, rows, g * step, (g + 1) * step,
                    c.scratch.group_scores + at);
      WithLanes(tile.lanes, [&](auto df) HWY_ATTR {
        AddScaledScores(df, tile.lanes, group * kGroupKeys, (group + count) * kGroupKeys,
                        c.keys.Scales(g), g == 0, c.scratch.group_scores, c.scratch.scores);
        return true;
      });
    }
  }

  // Scores of the operands [begin, end) of the rows of `count` groups.
  void ScoreOperands(const TileBlock& block, const Tile& tile, int group, int count,
                     [[maybe_unused]] const KvRows* rows, int begin, int end, float* scores) {
    const Context& c = context_;
    const Operand* q = c.queries.Packed(block.head, tile);
    if constexpr (CodedKernels<Math>::kAny) {
      const auto& kernel = ReadsKeysInPlace(tile) ? coded_.keys : coded_.decoded_keys;
      if (kernel.run != nullptr) {
        const bool scaled =
            ReadsKeysInPlace(tile) && IsBlocks(c.keys.code()) && c.keys.scales_per_row() > 1;
        kernel.run(q, tile.lanes,
                   {.rows = rows[0].row,
                    .begin_step = begin / kernel.step_operands,
                    .end_step = end / kernel.step_operands,
                    .scales = scaled ? c.keys.Scales(0) + group * kGroupKeys : nullptr,
                    .ahead = ahead_rows_.keys[group].row,
                    .ahead_lines = coded_.key_lines},
                   count, scores);
        return;
      }
    }
    if constexpr (Math::kHasInPlaceKernels) {
      InPlaceScores<Math>(q, tile.lanes, tile.rows, {rows[0].row, begin, end}, count * kGroupKeys,
                          scores, {ahead_rows_.keys[group].row, key_step_});
    } else {
      for (int i = 0; i < count; ++i) {
        const Operand* keys =
            c.scratch.keys + KeyBufferGroup(group + i) * kGroupKeys * c.key_stride;
        Scores16<Math>(q, tile.lanes, {keys, c.key_stride, begin, end}, {0, kGroupKeys},
                       scores + i * kGroupKeys * tile.lanes,
                       {ahead_rows_.keys[group + i].row, key_step_});
      }
    }
  }

#if HWY_CAP_GE512
  // Columns that the kernels for values in place take at a time. The sums of padding columns after
  // the last one are never written.
  static constexpr int kInPlaceColumns = 16 * Math::kPerOperand;

  // Values are read in place, or where they have been decoded to.
  void AddInPlace(const TileBlock& block, const Tile& tile) {
    const Context& c = context_;
    KvRows* rows = rows_.values;
    const int stride = c.shape.columns / Math::kPerOperand;
    for (int group = block.begin / kGroupKeys; group < block.end / kGroupKeys; ++group) {
      MakeReadable(Group(block, group), group, stride, tile, &rows[group]);
      for (int i = 0; block.masked && i < kGroupKeys; ++i) {
        if (c.Hides(block, group * kGroupKeys + i, 0, tile.lanes)) {
          rows[group].row[i] = kZeroRow;
        }
      }
    }
    InPlaceValues values = {
        .rows = rows[block.begin / kGroupKeys].row,
        .keys = block.end - block.begin,
        .overwrite_sums = block.overwrite_sums,
        .columns = c.shape.columns,
        .begin_column = 0,
        .end_column = 0,
        .group_columns =
            c.values.scales_per_row() < 2 ? c.shape.columns : c.values.elements_per_scale(),
        .ahead = {ahead_rows_.values[block.begin / kGroupKeys].row, AheadStep(c.args.values, 32)}};
    const auto add = [&](int begin_column, int end_column) HWY_ATTR {
      values.begin_column = begin_column;
      values.end_column = end_column;
      AddColumnsInPlace(c.scratch.p + block.begin / Math::kPerOperand * tile.lanes, tile, values,
                        c.Sums(block, tile));
    };
    const int groups = ReadsValuesInPlace(tile) ? kTileRows / tile.lanes : 1;
    c.softmax.ForColumnGroups(tile.lanes, block.begin, block.end, c.args.values.dim, groups, add);
  }

  bool ReadsValuesInPlace([[maybe_unused]] const Tile& tile) const {
    if constexpr (CodedKernels<Math>::kAny) {
      return coded_.ReadsValuesInPlace(tile.lanes);
    }
    return false;
  }

  // Replaces `rows`, where values lie in the pool, by rows that kernels can read.
  void MakeReadable(const RowsAt& at, int group, int stride, const Tile& tile, KvRows* rows) const {
    const Context& c = context_;
    if constexpr (Math::kPerOperand == 1) {
      if (c.values.code() <= RowCode::kBF16) {  // converted as they are loaded
        return;
      }
    } else if (c.args.values_in_keys && !c.values.in_place() && !ReadsKeysInPlace(tile)) {
      return FindDecodedWithKeys(group, rows);
    }
    if (ReadsValuesInPlace(tile) || c.values.in_place()) {
      return;
    }
    c.values.Readable(at, stride, c.scratch.values + group * kGroupKeys * stride, rows);
  }

  // Values that lie in keys, which have just been decoded without their scales.
  void FindDecodedWithKeys(int group, KvRows* rows) const {
    const Context& c = context_;
    const auto offset = static_cast<size_t>(c.args.values.data - c.args.keys.data);
    const size_t element = offset * static_cast<size_t>(c.args.keys.dim) / c.args.keys.row_bytes;
    for (int i = 0; i < kGroupKeys; ++i) {
      rows->row[i] = reinterpret_cast<const uint8_t*>(
                         c.scratch.keys + (KeyBufferGroup(group) * kGroupKeys + i) * c.key_stride) +
                     2 * element;
    }
  }

  void AddColumnsInPlace(const Operand* p, const Tile& tile, const InPlaceValues& values,
                         float* sums) const {
    if constexpr (Math::kPerOperand == 1) {
      if (context_.values.code() == RowCode::kF16) {
        return AddInPlaceValues<Math, RowCode::kF16>(p, tile.lanes, tile.rows, values, sums);
      }
      if (context_.values.code() == RowCode::kBF16) {
        return AddInPlaceValues<Math, RowCode::kBF16>(p, tile.lanes, tile.rows, values, sums);
      }
      AddInPlaceValues<Math, RowCode::kF32>(p, tile.lanes, tile.rows, values, sums);
    } else {
      if constexpr (CodedKernels<Math>::kAny) {
        if (ReadsValuesInPlace(tile)) {
          return coded_.values(p, tile.lanes, tile.rows, values, sums);
        }
      }
      AddInPlaceValues<Math, RowCode::kBF16>(p, tile.lanes, tile.rows, values, sums);
    }
  }
#endif

  // Values are packed a group at a time, used and forgotten.
  void AddPacked(const TileBlock& block, const Tile& tile) {
    const Context& c = context_;
    Operand* v = c.scratch.values;
    ValueProduct<Math> product = c.Product(block, tile, v);
    product.steps = Context::kGroupSteps;
    for (int begin = block.begin; begin < block.end; begin += kGroupKeys) {
      const int group = begin / kGroupKeys;
      const int end = begin + kGroupKeys;
      c.PackValues(block.head, block.key0, group, group + 1, c.seen, v);
      const bool row_by_row = block.has_hidden_keys && c.values.HasNonFiniteOperands() &&
                              AnyNonFinite(Math(), v, Context::kGroupSteps * c.value_stride);
      const auto add = [&](int begin_column, int end_column) HWY_ATTR {
        product.begin_column = begin_column;
        product.end_column = end_column;
        if (row_by_row) {
          c.AddRowByRow(block, begin, end, tile, product, v);
        } else {
          AddValuesAhead(product, tile.rows, {ahead_rows_.values[group].row, value_step_});
        }
      };
      c.softmax.ForColumnGroups(tile.lanes, begin, end, c.shape.columns, 1, add);
      product.p += Context::kGroupSteps * tile.lanes;
      product.overwrite_sums = false;
    }
  }

  // Bytes in memory of `elements` elements of a row.
  static int AheadStep(const KvPages& kv, int elements) {
    return static_cast<int>(static_cast<size_t>(elements) * kv.row_bytes /
                            static_cast<size_t>(kv.dim));
  }

  const Context& context_;
  const CodedKernels<Math> coded_;
  const int operands_;
  const int key_step_;
  const int value_step_;
  TileRows rows_;        // of the block in hand
  TileRows ahead_rows_;  // what is prefetched; rows of zeros: nothing
  bool prefetches_ = false;
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
