// Bounds of the logits of a tile. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PREFILTER_TILE_BOUNDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PREFILTER_TILE_BOUNDS_INL_H_
#undef RIFFLE_LM_HEAD_PREFILTER_TILE_BOUNDS_INL_H_
#else
#define RIFFLE_LM_HEAD_PREFILTER_TILE_BOUNDS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lm_head/prefilter/inplace_int8-inl.h"
#include "lm_head/prefilter/packed_int8-inl.h"
#include "lm_head/prefilter/prefilter_plan.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Computes, on one thread, approximate logits of tiles of W, and how far the exact ones may be from
// them.
class TileBounds {
 public:
  // `scratch` has layout.bytes.
  TileBounds(const PrefilterArgs& args, const BoundsScratch& layout, uint8_t* scratch)
      : args_(args),
        linear_(args.linear),
        weights_(layout.weights.At(scratch)),
        scales_(layout.scales.At(scratch)),
        norms_(layout.norms.At(scratch)),
        bias_(layout.bias.At(scratch)),
        slack_(layout.slack.At(scratch)),
        sums_(layout.sums.At(scratch)) {
    HWY_DASSERT(0 < linear_.rows && linear_.rows <= layout.rows);
    std::fill_n(bias_, kTile, 0.0f);
    std::fill_n(slack_, kTile, 0.0f);
  }

  void Run(int64_t tile) {
    const int64_t column = tile * kTile;
    HWY_DASSERT(0 <= tile && column < linear_.vocab);
    columns_ = static_cast<int>(std::min<int64_t>(kTile, linear_.vocab - column));
    std::fill_n(sums_, linear_.rows * kTile, 0.0f);
    std::fill_n(norms_, kTile, 0.0f);
    if (args_.in_place()) {
      RunInplace(column);
    } else {
      for (int at = 0; at < columns_; at += kPanel) {
        RunPackedPanel(column, at);
      }
    }
    const LaneF32 df;
    for (int i = 0; i < kTile; i += kLanes) {
      // The squares are rounded, and up to 1 / 128 too small: docs/prefilter.md.
      const auto norm = hn::Mul(hn::Sqrt(hn::Load(df, norms_ + i)), hn::Set(df, 1.005f));
      hn::Store(norm, df, norms_ + i);
    }
    LoadBias(column);
  }

  int columns() const { return columns_; }

  // Bounds of a row's logits in columns i to i + kLanes - 1 of the tile. NaN: no bound is known.
  HWY_INLINE void Bounds(int64_t row, int i, VecF32& lower, VecF32& upper) const {
    const LaneF32 df;
    const ErrorBound error = args_.errors[row];
    const auto value = hn::Add(hn::Load(df, sums_ + row * kTile + i), hn::Load(df, bias_ + i));
    const auto slack = hn::Add(hn::Load(df, slack_ + i), hn::Set(df, error.absolute));
    const auto away = hn::MulAdd(hn::Set(df, error.relative), hn::Load(df, norms_ + i), slack);
    lower = hn::Sub(value, away);
    upper = hn::Add(value, away);
  }

 private:
  // Column `i` of the tile that starts at `column`; the last one is repeated to fill the tile.
  const uint8_t* ColumnAt(int64_t column, int i) const {
    return linear_.weight + (column + std::min(i, columns_ - 1)) * linear_.weight_stride;
  }

  void RunInplace(int64_t column) {
    const uint8_t* columns[kTile];
    for (int i = 0; i < kTile; ++i) {
      columns[i] = ColumnAt(column, i);
    }
    InplaceTile tile;
    tile.column = columns;
    tile.bytes = args_.blocks() * kQ8BlockBytes;
    tile.ahead = kInplaceAhead * linear_.weight_stride;
    tile.x = args_.inplace;
    tile.lines = args_.lines();
    if (linear_.rows == 1) {
      InplaceInt8<1>(tile, sums_, norms_);
    } else if (linear_.rows == 2) {
      InplaceInt8<2>(tile, sums_, norms_);
    } else {
      InplaceInt8<kInplaceRows>(tile, sums_, norms_);
    }
  }

  void RunPackedPanel(int64_t column, int at) {
    Int8Panel panel;
    for (int i = 0; i < kPanel; ++i) {
      panel.column[i] = ColumnAt(column, at + i);
    }
    panel.weights = weights_;
    panel.scales = scales_;
    panel.squares = norms_ + at;
    const int rows = static_cast<int>(linear_.rows);
    const int groups = (rows + kInt8Rows - 1) / kInt8Rows;
    const Int8Block* x = args_.x;
    for (int block = 0; block < args_.blocks(); block += kPrefilterBlocks) {
      panel.blocks = std::min(kPrefilterBlocks, args_.blocks() - block);
      const int64_t offset = block * kQ8BlockBytes;
      // Brings the same blocks of the next panel into L2: while packing if there is one group of
      // rows, otherwise during the products, which then take longer than packing.
      ColumnPrefetcher prefetcher(panel.column[0], kPanel * linear_.weight_stride + offset,
                                  linear_.weight_stride, panel.blocks * kQ8BlockBytes);
      const bool early = groups == 1;
      const int lines = prefetcher.Each(kPanel, panel.blocks * (early ? kPanel / kLanes : groups));
      PackPanel(panel, offset, prefetcher, early ? lines : 0);
      for (int group = 0; group < groups; ++group) {  // groups are of about the same size
        const int begin = rows * group / groups;
        const int end = rows * (group + 1) / groups;
        Int8Group<kInt8Rows>(x + begin * kPrefilterBlocks, end - begin, panel,
                             sums_ + begin * kTile + at, prefetcher, early ? 0 : lines);
      }
      x += linear_.rows * kPrefilterBlocks;
    }
  }

  void LoadBias(int64_t column) {
    if (linear_.bias.data == nullptr) {
      return;
    }
    for (int i = 0; i < columns_; ++i) {
      bias_[i] = BiasAt(linear_.bias, column + i);
      // Infinite for a large bias, whose sums might overflow: the column then becomes a candidate.
      slack_[i] = std::abs(bias_[i]) <= 0x1p100f ? std::abs(bias_[i]) * 0x1p-20f
                                                 : std::numeric_limits<float>::infinity();
    }
  }

  const PrefilterArgs& args_;
  const LinearArgs& linear_;
  uint8_t* weights_;
  float* scales_;
  float* norms_;
  float* bias_;
  float* slack_;
  float* sums_;
  int columns_ = 0;
};

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
