// From the scores of a tile to its probabilities. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_TILE_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_TILE_SOFTMAX_INL_H_
#undef RIFFLE_ATTENTION_TILE_SOFTMAX_INL_H_
#else
#define RIFFLE_ATTENTION_TILE_SOFTMAX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/bias-inl.h"
#include "attention/kv_source-inl.h"
#include "attention/query_tiles-inl.h"
#include "attention/softmax-inl.h"
#include "attention/weights-inl.h"
#include "attention/work_item_scratch-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// f(tag) with the vector for tiles of `lanes` lanes.
template <class F>
HWY_INLINE auto WithLanes(int lanes, const F& f) {
  return lanes == 4 ? f(FloatTag<4>()) : lanes == 8 ? f(FloatTag<8>()) : f(FloatTag<16>());
}

// Where a tile meets a block of keys of a KV head.
struct TileBlock {
  int head;        // of the work item
  int key0;        // the block's first key
  int begin, end;  // relative to it: the groups of 16 keys of which any row of the tile sees a key
  bool has_hidden_keys;     // some row does not see some of these keys
  bool hidden_by_position;  // causality or a window hides some of them from some row
  bool masked;              // the mask hides some of them from some row, or adds to a logit
  bool overwrite_sums;      // these are the tile's first keys of the KV split
};

template <class Math>
class TileSoftmax {
 public:
  TileSoftmax(const AttentionArgs& args, const WorkItemScratch<Math>& scratch,
              const KvSource<Math>& keys, const KvSource<Math>& values)
      : scale_(std::abs(args.scale)),
        soft_cap_(args.soft_cap),
        wide_logits_(NeedsWideLogits(args.scale, args.soft_cap)),
        // After a soft cap scores are logits in units of log2 already.
        factor_(args.soft_cap > 0 || args.scale == 0 || wide_logits_ ? 1.0f : scale_ * kLog2E),
        slopes_(args.slopes != nullptr),
        scratch_(scratch),
        keys_(keys),
        values_(values) {}

  // Turns scores into probabilities, or into weights that ForColumnGroups scales, and updates the
  // states. Returns whether any correction is not 1. Pre: if block.masked or there are slopes,
  // scratch.bias has what is added to logits (FillBias).
  bool Run(const TileBlock& block, const Tile& tile, const TileState& states) const {
    const bool biased = block.masked || slopes_;
    return WithLanes(tile.lanes, [&](auto df) HWY_ATTR {
      MakeLogits(df, block, tile);
      if (biased) {
        AddBias(df, tile.lanes, block.begin, block.end, factor_, scratch_.bias, scratch_.scores);
      }
      Mask(df, block, tile);
      // Leaving the factor to MakeWeights gives the same bits: it is positive, so the largest
      // product is that of the largest score.
      return MakeWeights(df, block, tile, states, biased ? 1.0f : factor_);
    });
  }

  // Calls f(first, end) for ranges of columns. Before each call, scratch.p gets the probabilities
  // of keys [begin, end) of the block, scaled for each group of columns in the range:
  // [groups][kBlock / kPerOperand][lanes]. A range has at most `groups` groups; p has room for
  // kTileRows / lanes.
  template <class F>
  void ForColumnGroups(int lanes, int begin, int end, int columns, int groups, const F& f) const {
    if (values_.scales_per_row() < 2) {
      f(0, columns);
      return;
    }
    for (int g = 0; g < values_.scales_per_row(); g += groups) {
      const int count = std::min(groups, values_.scales_per_row() - g);
      WithLanes(lanes, [&](auto df) HWY_ATTR {
        ScaleKeptWeights<Math>(df, lanes, begin, end, scratch_.group_scores, scratch_.scores,
                               values_.Scales(g), count, scratch_.p);
        return true;
      });
      f(g * values_.elements_per_scale(), (g + count) * values_.elements_per_scale());
    }
  }

 private:
  // q . k -> logits, except for the factor. Where keys have several scales, they are applied
  // already.
  template <class DF>
  HWY_INLINE void MakeLogits(DF df, const TileBlock& block, const Tile& tile) const {
    if (keys_.scales_per_row() == 1) {
      AddScaledScores(df, tile.lanes, block.begin, block.end, keys_.Scales(0), /*first=*/true,
                      scratch_.scores, scratch_.scores);
    }
    if (wide_logits_) {
      WideLogits((block.end - block.begin) * tile.lanes, scale_, soft_cap_,
                 scratch_.scores + block.begin * tile.lanes);
    } else if (soft_cap_ > 0) {
      SoftCap(df, tile.lanes, block.begin, block.end, scale_, soft_cap_, scratch_.scores);
    }
  }

  // What a row does not see becomes -inf, whatever its score is.
  template <class DF>
  HWY_INLINE void Mask(DF df, const TileBlock& block, const Tile& tile) const {
    if (block.hidden_by_position) {
      MaskOutside(df, tile.lanes, block.begin, block.end, block.key0, scratch_.first + tile.row,
                  scratch_.last + tile.row, scratch_.scores);
    }
  }

  template <class DF>
  HWY_INLINE bool MakeWeights(DF df, const TileBlock& block, const Tile& tile,
                              const TileState& states, float factor) const {
    const int groups = values_.scales_per_row();
    if constexpr (Math::kPerOperand == 2) {  // whose operands are unscaled
      if (groups > 1) {
        return Weigh(df, block, tile, KeptWeights{scratch_.group_scores}, states, factor);
      }
      if (groups == 1) {
        return Weigh(df, block, tile, ScaledWeights<Math>{scratch_.p, values_.Scales(0)}, states,
                     factor);
      }
    }
    return Weigh(df, block, tile, PlainWeights<Math>{scratch_.p}, states, factor);
  }

  template <class DF, class Sink>
  HWY_INLINE bool Weigh(DF df, const TileBlock& block, const Tile& tile, const Sink& sink,
                        const TileState& states, float factor) const {
#if HWY_CAP_GE512
    if constexpr (hn::MaxLanes(DF()) == 4) {
      return SoftmaxOf4Rows(block.begin, block.end, factor, scratch_.scores, sink, states);
    }
#endif
    return SoftmaxBlock(df, tile.lanes, block.begin, block.end, factor, scratch_.scores, sink,
                        states);
  }

  const float scale_;
  const float soft_cap_;
  const bool wide_logits_;
  const float factor_;
  const bool slopes_;
  const WorkItemScratch<Math>& scratch_;
  const KvSource<Math>& keys_;
  const KvSource<Math>& values_;
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
