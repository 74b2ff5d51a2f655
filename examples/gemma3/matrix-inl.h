// The product of a panel and rows of activations. Included once per SIMD target.
#if defined(RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_
#undef RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_
#else
#define RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "examples/gemma3/matrix.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::gemma3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows whose sums a panel keeps in the first-level cache while it runs over its blocks.
constexpr int64_t kRowTile = 64;

using DI = hn::CappedTag<int32_t, 16>;
using DF = hn::RebindToFloat<DI>;
using DU8 = hn::Repartition<uint8_t, DI>;
using DI8 = hn::Repartition<int8_t, DI>;
using VI = hn::Vec<DI>;
using VF = hn::Vec<DF>;

// Four inputs of a plane in every lane.
HWY_INLINE hn::Vec<DI8> Four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return hn::BitCast(DI8(), hn::Set(DI(), bits));
}

// For kRows rows, dots[row] = 256 * (sum of high * code) + (sum of low * code) + dots[row] over the
// inputs 4 * kFirst .. 4 * kLast of the block, a lane an output. Two chains a row: with four rows
// they hide the latency of the dot product.
template <int kFirst, int kLast, int kRows>
HWY_INLINE void DotPlanes(const hn::Vec<DU8> (&codes)[8], const int8_t* planes, VI (&dots)[kRows]) {
  VI high[kRows];
  for (int row = 0; row < kRows; ++row) {
    high[row] = hn::Zero(DI());
  }
  for (int i = kFirst; i < kLast; ++i) {
    for (int row = 0; row < kRows; ++row) {
      const int8_t* plane = planes + row * 2 * kBlock + 4 * i;
      high[row] = hn::SumOfMulQuadAccumulate(DI(), codes[i], Four(plane), high[row]);
      dots[row] = hn::SumOfMulQuadAccumulate(DI(), codes[i], Four(plane + kBlock), dots[row]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    dots[row] = hn::Add(hn::ShiftLeft<8>(high[row]), dots[row]);
  }
}

// A block of a panel, some of its outputs: a vector.
struct BlockVector {
  hn::Vec<DU8> codes[8];
  VF scale;
  VF second;  // the other scale, or the minimum
};

template <Scales kScales>
HWY_INLINE BlockVector LoadBlock(const uint8_t* codes, const uint8_t* scales, size_t lane) {
  const DF df;
  BlockVector block;
  for (size_t i = 0; i < 8; ++i) {
    block.codes[i] = hn::Load(DU8(), codes + (i * kPanel + lane) * 4);
  }
  if constexpr (kScales == Scales::kHalf) {
    const hn::Rebind<hwy::float16_t, DF> df16;
    const auto* half = reinterpret_cast<const hwy::float16_t*>(scales);
    block.scale = block.second = hn::PromoteTo(df, hn::LoadU(df16, half + lane));
  } else {
    const auto* full = reinterpret_cast<const float*>(scales);
    block.scale = hn::Load(df, full + lane);
    block.second = hn::Load(df, full + kPanel + lane);
  }
  return block;
}

// Adds the product of a block with kRows rows of x from `at` (block * rows + row) on to sums
// [kRows][16].
template <Scales kScales, int kRows>
HWY_INLINE void AddRows(const Activations& x, const BlockVector& block, int64_t at,
                        float* HWY_RESTRICT sums) {
  const DI di;
  const DF df;
  const int8_t* planes = x.planes() + at * 2 * kBlock;
  const float* step = x.step() + at;
  const int32_t* correction = x.correction() + 2 * at;
  VI dots[kRows];
  VI others[kRows];
  for (int row = 0; row < kRows; ++row) {
    const int32_t first = kScales == Scales::kTwo ? correction[2 * row] : 0;
    others[row] = hn::Set(di, first);
    dots[row] = hn::Set(di, correction[2 * row + 1] - first);
  }
  if constexpr (kScales == Scales::kTwo) {
    DotPlanes<0, 4>(block.codes, planes, others);
    DotPlanes<4, 8>(block.codes, planes, dots);
  } else {
    DotPlanes<0, 8>(block.codes, planes, dots);
  }
  for (int row = 0; row < kRows; ++row) {
    const VF unit = hn::Set(df, step[row]);
    VF y = hn::Load(df, sums + row * kPanel);
    if constexpr (kScales == Scales::kTwo) {
      y = hn::MulAdd(hn::ConvertTo(df, others[row]), hn::Mul(block.scale, unit), y);
      y = hn::MulAdd(hn::ConvertTo(df, dots[row]), hn::Mul(block.second, unit), y);
    } else {
      y = hn::MulAdd(hn::ConvertTo(df, dots[row]), hn::Mul(block.scale, unit), y);
    }
    if constexpr (kScales == Scales::kMinimum) {
      y = hn::NegMulAdd(block.second, hn::Set(df, x.sum()[at + row]), y);
    }
    hn::Store(y, df, sums + row * kPanel);
  }
}

// Adds a block's product with rows [first, last) of x to sums [row - first][16].
template <Scales kScales>
HWY_INLINE void AddBlock(const Activations& x, const uint8_t* codes, const uint8_t* scales,
                         int64_t block, int64_t first, int64_t last, float* HWY_RESTRICT sums) {
  for (size_t lane = 0; lane < kPanel; lane += hn::Lanes(DI())) {
    const BlockVector vectors = LoadBlock<kScales>(codes, scales, lane);
    const int64_t at = block * x.rows();
    float* to = sums + lane;
    int64_t row = first;
    for (; row + 4 <= last; row += 4, to += 4 * kPanel) {
      AddRows<kScales, 4>(x, vectors, at + row, to);
    }
    for (; row < last; ++row, to += kPanel) {
      AddRows<kScales, 1>(x, vectors, at + row, to);
    }
  }
}

// Bytes ahead of the block at work. Past the weight's end they are prefetched, never read.
constexpr int64_t kAhead = 4096;
HWY_INLINE void PrefetchBlock(const uint8_t* from) {
  for (int64_t i = 0; i < kPanel * kBlock; i += 64) {
    hwy::Prefetch(from + i);
  }
}

template <Scales kScales>
HWY_INLINE void MultiplyPanel(const Activations& x, const Product& product, int64_t panel) {
  const Matrix& weight = *product.weight;
  const uint8_t* codes = weight.data.get() + panel * weight.panel_bytes();
  const uint8_t* scales = codes + weight.blocks() * kPanel * kBlock;
  HWY_ALIGN float sums[kRowTile * kPanel];
  for (int64_t first = 0; first < x.rows(); first += kRowTile) {
    const int64_t last = std::min(x.rows(), first + kRowTile);
    std::memset(sums, 0, static_cast<size_t>((last - first) * kPanel) * sizeof(float));
    for (int64_t block = 0; block < weight.blocks(); ++block) {
      if (first == 0) {
        PrefetchBlock(codes + block * kPanel * kBlock + kAhead);
      }
      AddBlock<kScales>(x, codes + block * kPanel * kBlock, scales + block * ScaleBytes(kScales),
                        block, first, last, sums);
    }
    for (int64_t row = first; row < last; ++row) {
      std::memcpy(product.y + row * product.stride + panel * kPanel, sums + (row - first) * kPanel,
                  kPanel * sizeof(float));
    }
  }
}

// Panels [first, last) of x Wt, all rows.
void MultiplyPanelsOf(const Activations& x, const Product& product, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; ++panel) {
    switch (product.weight->scales) {
      case Scales::kHalf:
        MultiplyPanel<Scales::kHalf>(x, product, panel);
        break;
      case Scales::kTwo:
        MultiplyPanel<Scales::kTwo>(x, product, panel);
        break;
      case Scales::kMinimum:
        MultiplyPanel<Scales::kMinimum>(x, product, panel);
        break;
    }
  }
}

}  // namespace riffle::gemma3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
