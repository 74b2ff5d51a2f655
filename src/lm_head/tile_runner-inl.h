// Computes tiles of logits. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_TILE_RUNNER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_TILE_RUNNER_INL_H_
#undef RIFFLE_LM_HEAD_TILE_RUNNER_INL_H_
#else
#define RIFFLE_LM_HEAD_TILE_RUNNER_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "lm_head/lanes-inl.h"
#include "lm_head/linear_plan.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Computes tiles of logits on one thread, for all rows of `args` at once.
class TileRunner {
 public:
  // `scratch` has layout.bytes.
  TileRunner(const LinearArgs& args, const TileScratch& layout, uint8_t* scratch)
      : args_(args),
        operands_(layout.operands.At(scratch)),
        scales_(layout.scales.At(scratch)),
        tails_(layout.tails.At(scratch)),
        bias_(layout.bias.At(scratch)),
        sums_(layout.sums.At(scratch)),
        q8_(args.format == WeightFormat::kQ8_0) {
    HWY_DASSERT(0 < args.rows && args.rows <= layout.rows);
  }

  // Computes the logits of a tile, [rows][kTile].
  const float* Run(int64_t tile) {
    first_ = tile * kTile;
    HWY_DASSERT(0 <= tile && first_ < args_.vocab);
    column_list_ = nullptr;
    columns_ = static_cast<int>(std::min<int64_t>(kTile, args_.vocab - first_));
    return RunTile();
  }
  // Computes the logits of the columns list[0, count), [rows][kTile].
  const float* RunColumns(const int32_t* list, int count) {
    HWY_DASSERT(!args_.transposed && 0 < count && count <= kTile);
    first_ = 0;
    column_list_ = list;
    columns_ = count;
    return RunTile();
  }
  int columns() const { return columns_; }

 private:
  int64_t Column(int i) const { return column_list_ != nullptr ? column_list_[i] : first_ + i; }

  const float* RunTile() {
    std::fill_n(sums_, args_.rows * kTile, 0.0f);
    WeightTile tile = Begin();
    for (int64_t k_block = 0; k_block < args_.k_blocks(); ++k_block) {
      const int64_t input = k_block * kKBlock;
      tile.offset = q8_ ? input / kQ8Block * kQ8BlockBytes : input * args_.element_bytes();
      tile.transposed_data =
          args_.weight + input * tile.transposed_stride + first_ * args_.element_bytes();
      tile.inputs = static_cast<int>(std::min<int64_t>(kKBlock, args_.d - input));
      Multiply(tile, k_block);
    }
    Complete();
    return sums_;
  }

  WeightTile Begin() {
    WeightTile tile;
    for (int i = 0; i < kTile; ++i) {
      tile.column[i] = args_.transposed
                           ? nullptr
                           : args_.weight + Column(std::min(i, columns_ - 1)) * args_.weight_stride;
    }
    tile.column_bytes = args_.column_bytes();
    tile.next_tile = column_list_ != nullptr ? 0 : kTile * args_.weight_stride;
    tile.transposed_stride = args_.transposed ? args_.weight_stride : 0;
    tile.columns = columns_;
    tile.tails = tails_;
    tile.scales = scales_;
    return tile;
  }

  // Adds the products of a k block to the sums.
  void Multiply(const WeightTile& tile, int64_t k_block) {
    const ProductFunctions& run = args_.product;
    KBlockProduct product;
    product.x = static_cast<const uint8_t*>(args_.x) +
                k_block * args_.packed_rows * kKBlock * args_.input_bytes();
    product.w = operands_;
    product.sums = sums_;
    product.rows = static_cast<int>(args_.rows);
    if (q8_) {
      run.load_scales(tile);
    }
    if (args_.transposed) {
      run.pack_transposed(tile, operands_);
      run.multiply_packed(product, tile, /*prefetch=*/false);  // packing has prefetched already
    } else if (args_.rows <= kSmallM && tile.inputs % kInputGroup == 0) {
      run.multiply_inplace(product, tile);
    } else {
      run.pack(tile, operands_);
      run.multiply_packed(product, tile, /*prefetch=*/true);
    }
  }

  // Adds the bias, then makes the results canonical: zeros become +0, NaNs the one quiet NaN.
  void Complete() {
    const LaneF32 df;
    LoadBias();
    float* sums = sums_;
    const auto nan = hn::BitCast(df, hn::Set(LaneU32(), kCanonicalNaN));
    for (int64_t row = 0; row < args_.rows; ++row, sums += kTile) {
      for (int i = 0; i < kTile; i += kLanes) {
        auto value = hn::Load(df, sums + i);
        if (args_.bias.data != nullptr) {
          value = hn::Add(value, hn::Load(df, bias_ + i));
        }
        value = hn::Add(value, hn::Zero(df));
        hn::Store(hn::IfThenElse(hn::IsNaN(value), nan, value), df, sums + i);
      }
    }
  }

  void LoadBias() {
    for (int i = 0; i < kTile && args_.bias.data != nullptr; ++i) {
      bias_[i] = i < columns_ ? BiasAt(args_.bias, Column(i)) : 0.0f;
    }
  }

  const LinearArgs& args_;
  uint32_t* operands_;
  float* scales_;
  uint8_t* tails_;
  float* bias_;
  float* sums_;
  bool q8_;
  int64_t first_ = 0;                     // the tile's first column; 0 if there is a list
  const int32_t* column_list_ = nullptr;  // null: the columns are consecutive
  int columns_ = 0;
};

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
