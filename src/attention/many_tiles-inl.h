// The rows of a work item in many tiles: a block of keys and values is packed once and serves all
// of them. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_MANY_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_MANY_TILES_INL_H_
#undef RIFFLE_ATTENTION_MANY_TILES_INL_H_
#else
#define RIFFLE_ATTENTION_MANY_TILES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "attention/work_item_context-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

template <class Math>
class ManyTiles {
 public:
  explicit ManyTiles(const WorkItemContext<Math>& context) : context_(context) {}

  // Runs a block of keys of a KV head against all tiles.
  void RunBlock(int head, int key0, const TileCursor& ahead) {
    const auto& c = context_;
    const int begin = std::max(c.seen.begin - key0, 0) / kGroupKeys;
    const int end = std::min((c.seen.end - key0 + kGroupKeys - 1) / kGroupKeys, kGroupsPerBlock);
    for (int group = 0; group < kGroupsPerBlock; ++group) {
      // All prefetches come first: spread over the tiles they gained nothing.
      ahead.Prefetch(group);
      ahead.Prefetch(kGroupsPerBlock + group);
      if (group < begin || group >= end) {  // no row sees any of it
        continue;
      }
      const RowsAt rows = c.Group(head, key0, group, c.seen);
      KvRows found;
      c.keys.Rows(rows, &found);
      c.keys.FindScales(rows, found, group);
      c.values.Rows(rows, &found);
      c.values.FindScales(rows, found, group);
      c.keys.Decode(rows, c.key_stride, c.scratch.keys + group * kGroupKeys * c.key_stride);
    }
    c.PackValues(head, key0, begin, end, c.seen,
                 c.scratch.values + begin * WorkItemContext<Math>::kGroupSteps * c.value_stride);
    c.queries.ForEachTile(
        [&](const Tile& tile) { RunTile(c.MakeTileBlock(head, key0, tile), tile); });
  }

 private:
  void RunTile(const TileBlock& block, const Tile& tile) {
    if (block.begin >= block.end) {
      return;
    }
    const auto& c = context_;
    Score(block, tile);
    const float* correction = c.Softmax(block, tile) ? c.scratch.correction : nullptr;
    auto* v = c.scratch.values + block.begin / Math::kPerOperand * c.value_stride;
    ValueProduct<Math> product = c.Product(block, tile, v);
    product.correction = correction;
    const bool row_by_row = block.has_hidden_keys && c.values.HasNonFiniteOperands() &&
                            AnyNonFinite(Math(), v, product.steps * c.value_stride);
    const auto add = [&](int begin_column, int end_column) HWY_ATTR {
      product.begin_column = begin_column;
      product.end_column = end_column;
      if (row_by_row) {
        c.AddRowByRow(block, block.begin, block.end, tile, product, v);
      } else {
        AddValues(product, tile.rows, block.key0 + block.begin, c.scratch.first + tile.row,
                  c.scratch.last + tile.row);
      }
    };
    c.softmax.ForColumnGroups(tile.lanes, block.begin, block.end, c.shape.columns, 1, add);
  }

  void Score(const TileBlock& block, const Tile& tile) {
    const auto& c = context_;
    const int operands = c.args.keys.dim / Math::kPerOperand;
    if (c.keys.scales_per_row() < 2) {
      ScoreGroups(block, tile, 0, operands, c.scratch.scores);
      return;
    }
    const int step = c.keys.elements_per_scale() / Math::kPerOperand;
    for (int g = 0; g < c.keys.scales_per_row(); ++g) {
      ScoreGroups(block, tile, g * step, (g + 1) * step, c.scratch.group_scores);
      WithLanes(tile.lanes, [&](auto df) HWY_ATTR {
        AddScaledScores(df, tile.lanes, block.begin, block.end, c.keys.Scales(g), g == 0,
                        c.scratch.group_scores, c.scratch.scores);
        return true;
      });
    }
  }

  // Scores of a row's operands [begin, end).
  void ScoreGroups(const TileBlock& block, const Tile& tile, int begin, int end, float* scores) {
    const auto& c = context_;
    for (int key = block.begin; key < block.end; key += kGroupKeys) {
      const int group0 = block.key0 + key;
      // Kernels for a tile of up to 16 lanes prefetch; here they get the row of zeros.
      Scores16<Math>(
          c.queries.Packed(block.head, tile), tile.lanes,
          {c.scratch.keys + key * c.key_stride, c.key_stride, begin, end},
          {std::max(0, tile.any.begin - group0), std::min(kGroupKeys, tile.any.end - group0)},
          scores + key * tile.lanes, {no_rows_.row, 0});
    }
  }

  const WorkItemContext<Math>& context_;
  const KvRows no_rows_ = ZeroRows();
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
