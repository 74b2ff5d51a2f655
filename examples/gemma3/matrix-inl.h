// The product of a panel and rows of activations. Included once per SIMD target.
#if defined(RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_
#undef RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_
#else
#define RIFFLE_EXAMPLES_GEMMA3_MATRIX_INL_H_
#endif

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

// Lanes of one output each: 256 * (sum of high * code) + (sum of low * code) + start, over the inputs
// 4 * first .. 4 * last of the block.
template <int kFirst, int kLast>
HWY_INLINE VI DotPlanes(const hn::Vec<DU8> (&codes)[8], const int8_t* planes, VI start) {
  VI high = hn::Zero(DI());
  VI low = start;
  for (int i = kFirst; i < kLast; ++i) {
    high = hn::SumOfMulQuadAccumulate(DI(), codes[i], Four(planes + 4 * i), high);
    low = hn::SumOfMulQuadAccumulate(DI(), codes[i], Four(planes + kBlock + 4 * i), low);
  }
  return hn::Add(hn::ShiftLeft<8>(high), low);
}

// Adds a block's product with rows [first, last) of x to sums [row - first][16].
template <Scales kScales>
HWY_INLINE void AddBlock(const Activations& x, const uint8_t* codes, const uint8_t* scales,
                         int64_t block, int64_t first, int64_t last, float* HWY_RESTRICT sums) {
  const DI di;
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> df16;
  const size_t lanes = hn::Lanes(di);
  const int8_t* planes = x.planes() + (block * x.rows()) * 2 * kBlock;
  const float* step = x.step() + block * x.rows();
  const int32_t* correction = x.correction() + block * x.rows() * 2;
  const float* sum = x.sum() + block * x.rows();
  for (size_t lane = 0; lane < kPanel; lane += lanes) {
    hn::Vec<DU8> code[8];
    for (size_t i = 0; i < 8; ++i) {
      code[i] = hn::Load(DU8(), codes + (i * kPanel + lane) * 4);
    }
    VF scale, second = hn::Zero(df);
    if constexpr (kScales == Scales::kHalf) {
      const auto* half = reinterpret_cast<const hwy::float16_t*>(scales);
      scale = hn::PromoteTo(df, hn::LoadU(df16, half + lane));
    } else {
      const auto* full = reinterpret_cast<const float*>(scales);
      scale = hn::Load(df, full + lane);
      second = hn::Load(df, full + kPanel + lane);
    }
    for (int64_t row = first; row < last; ++row) {
      float* to = sums + (row - first) * kPanel + lane;
      const int8_t* plane = planes + row * 2 * kBlock;
      const VF unit = hn::Set(df, step[row]);
      VF y = hn::Load(df, to);
      if constexpr (kScales == Scales::kTwo) {
        const int32_t part = correction[2 * row];
        const VI low = DotPlanes<0, 4>(code, plane, hn::Set(di, part));
        const VI high = DotPlanes<4, 8>(code, plane, hn::Set(di, correction[2 * row + 1] - part));
        y = hn::MulAdd(hn::ConvertTo(df, low), hn::Mul(scale, unit), y);
        y = hn::MulAdd(hn::ConvertTo(df, high), hn::Mul(second, unit), y);
      } else {
        const VI dot = DotPlanes<0, 8>(code, plane, hn::Set(di, correction[2 * row + 1]));
        y = hn::MulAdd(hn::ConvertTo(df, dot), hn::Mul(scale, unit), y);
        if constexpr (kScales == Scales::kMinimum) {
          y = hn::NegMulAdd(second, hn::Set(df, sum[row]), y);
        }
      }
      hn::Store(y, df, to);
    }
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
      AddBlock<kScales>(x, codes + block * kPanel * kBlock, scales + block * ScaleBytes(kScales),
                        block, first, last, sums);
    }
    for (int64_t row = first; row < last; ++row) {
      std::memcpy(product.y + row * product.stride + panel * kPanel,
                  sums + (row - first) * kPanel, kPanel * sizeof(float));
    }
  }
}

// Panels [first, last) of x Wt, all rows.
void MultiplyPanelsOf(const Activations& x, const Product& product, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; ++panel) {
    switch (product.weight->scales) {
      case Scales::kHalf: MultiplyPanel<Scales::kHalf>(x, product, panel); break;
      case Scales::kTwo: MultiplyPanel<Scales::kTwo>(x, product, panel); break;
      case Scales::kMinimum: MultiplyPanel<Scales::kMinimum>(x, product, panel); break;
    }
  }
}

}  // namespace riffle::gemma3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
