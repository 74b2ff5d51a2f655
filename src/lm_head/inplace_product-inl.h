// The product of up to kSmallM rows of x with W in place: W is transposed in registers, which for
// few rows costs less than packing it. The sums have the same bits as those of
// packed_product-inl.h. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_INPLACE_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_INPLACE_PRODUCT_INL_H_
#undef RIFFLE_LM_HEAD_INPLACE_PRODUCT_INL_H_
#else
#define RIFFLE_LM_HEAD_INPLACE_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include "lm_head/weight_source-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// kGroups: how many groups of kLanes columns are summed side by side, each in its own chains.
template <class Source, int kRows, int kGroups>
HWY_INLINE void InplaceKernel(const KBlockProduct& product, const WeightTile& tile, int column) {
  using Math = typename Source::Math;
  using Operand = typename Math::Operand;
  using S = PackStep<Source>;
  const LaneF32 df;
  const hn::Rebind<Operand, LaneF32> dw;
  constexpr int kRowOperands = kKBlock / Math::kPerOperand;
  const int operands = tile.inputs / Math::kPerOperand;
  const int rows = product.rows;  // if fewer than kRows, the first row is computed again instead
  const Operand* x[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = static_cast<const Operand*>(product.x) + (r < rows ? r : 0) * kRowOperands;
  }
  constexpr int kBlock = static_cast<int>(kQ8Block) / Math::kPerOperand;
  VecF32 sum[kGroups][kRows];
  VecF32 total[kGroups][kRows];
  float* sums = product.sums + column;
  for (int g = 0; g < kGroups; ++g) {
    for (int r = 0; r < kRows; ++r) {
      sum[g][r] = hn::Zero(df);
      const float* at = sums + (r < rows ? r : 0) * kTile + g * kLanes;
      total[g][r] = Source::kQ8 ? hn::Load(df, at) : sum[g][r];
    }
  }
  for (int i = 0; i < operands; i += S::kStepOperands) {
    for (int g = 0; g < kGroups; g += S::kGroups) {
      VecU32 v[kLanes];
      S::template Load</*kPrefetch=*/true>(tile, column + g * kLanes, i, v);
      for (int j = 0; j < S::kStepOperands; ++j) {
        for (int group = 0; group < S::kGroups; ++group) {
          const auto w = hn::BitCast(dw, v[group * S::kStepOperands + j]);
          for (int r = 0; r < kRows; ++r) {
            sum[g + group][r] = Math::Step(df, x[r][i + j], w, sum[g + group][r]);
          }
        }
      }
    }
    if (Source::kQ8 && (i + S::kStepOperands) % kBlock == 0) {
      const float* scales = tile.scales + i / kBlock * kTile + column;
      for (int g = 0; g < kGroups; ++g) {
        const auto scale = hn::Load(df, scales + g * kLanes);
        for (int r = 0; r < kRows; ++r) {
          total[g][r] = hn::MulAdd(scale, sum[g][r], total[g][r]);
          sum[g][r] = hn::Zero(df);
        }
      }
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    for (int r = 0; r < kRows && r < rows; ++r) {
      float* at = sums + r * kTile + g * kLanes;
      hn::Store(Source::kQ8 ? total[g][r] : hn::Add(hn::Load(df, at), sum[g][r]), df, at);
    }
  }
}

template <class Source, int kRows>
HWY_INLINE void InplaceColumns(const KBlockProduct& product, const WeightTile& tile) {
  // Two groups if their sums fit in registers beside the kLanes vectors of W, or if a step packs
  // two.
  constexpr bool kTwo = kRows * (Source::kQ8 ? 2 : 1) <= (HWY_CAP_GE512 ? 4 : 1);
  constexpr int kGroups = kTwo || PackStep<Source>::kGroups == 2 ? 2 : 1;
  for (int column = 0; column < kTile; column += kGroups * kLanes) {
    InplaceKernel<Source, kRows, kGroups>(product, tile, column);
  }
}

template <class Source>
void MultiplyInplace(const KBlockProduct& product, const WeightTile& tile) {
  HWY_DASSERT(0 < product.rows && product.rows <= kSmallM);
  HWY_DASSERT(0 < tile.inputs && tile.inputs <= kKBlock && tile.inputs % kInputGroup == 0);
  if (product.rows == 1) {
    InplaceColumns<Source, 1>(product, tile);
  } else if (product.rows == 2) {
    InplaceColumns<Source, 2>(product, tile);
  } else {
    InplaceColumns<Source, kSmallM>(product, tile);
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
