// The product of a panel and a tile of rows. Included once per SIMD target.
#if defined(RIFFLE_ENGINE_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ENGINE_MATRIX_INL_H_
#undef RIFFLE_ENGINE_MATRIX_INL_H_
#else
#define RIFFLE_ENGINE_MATRIX_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "engine/layers/row_kernels-inl.h"
#include "engine/quant/block-inl.h"
#include "engine/quant/matrix.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// How many vectors of outputs are computed together. Two share each broadcast of activations, and
// their 16 vectors of codes and the sums of four rows fit in registers.
constexpr size_t kVectors = 2;

// Broadcasts four inputs of a plane to every lane.
HWY_INLINE VU8 BroadcastFour(const uint8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return hn::BitCast(DU8(), hn::Set(DI(), bits));
}

// For kRows rows, adds the sum of plane * code over the inputs 4 * kFirst .. 4 * kLast of the block
// to `dots`; each lane is an output.
template <int kFirst, int kLast, int kRows>
HWY_INLINE void DotPlane(const BlockVector (&blocks)[kVectors], const uint8_t* plane,
                         VI (&dots)[kRows][kVectors]) {
  for (int i = kFirst; i < kLast; ++i) {
    for (int row = 0; row < kRows; ++row) {
      const VU8 x = BroadcastFour(plane + row * 2 * kBlock + 4 * i);
      for (size_t v = 0; v < kVectors; ++v) {
        dots[row][v] = hn::SumOfMulQuadAccumulate(DI(), x, blocks[v].codes[i], dots[row][v]);
      }
    }
  }
}

// dots = the sum of (256 * high + low - 32768) * code. Two calls instead of a loop, in which g++
// would keep the sums in memory.
template <int kFirst, int kLast, int kRows>
HWY_INLINE void DotPlanes(const BlockVector (&blocks)[kVectors], const uint8_t* planes,
                          VI (&dots)[kRows][kVectors]) {
  for (int row = 0; row < kRows; ++row) {
    for (size_t v = 0; v < kVectors; ++v) {
      dots[row][v] = blocks[v].zero[kLast == 8 && kFirst > 0 ? 1 : 0];
    }
  }
  DotPlane<kFirst, kLast>(blocks, planes, dots);
  for (int row = 0; row < kRows; ++row) {
    for (size_t v = 0; v < kVectors; ++v) {
      dots[row][v] = hn::ShiftLeft<8>(dots[row][v]);
    }
  }
  DotPlane<kFirst, kLast>(blocks, planes + kBlock, dots);
}

// The step of a row, a power of two or NaN, and scale * step. AVX-512's scalef runs on a port that
// dot products leave free; a multiplication would compete with them.
#if HWY_TARGET <= HWY_AVX3
HWY_INLINE VF Step(float step) { return VF{_mm512_getexp_ps(_mm512_set1_ps(step))}; }
HWY_INLINE VF ScaleByStep(VF scale, VF step) { return VF{_mm512_scalef_ps(scale.raw, step.raw)}; }
#else
HWY_INLINE VF Step(float step) { return hn::Set(DF(), step); }
HWY_INLINE VF ScaleByStep(VF scale, VF step) { return hn::Mul(scale, step); }
#endif

// Adds the product of a block and kRows rows of x, stored from `at` on, to sums [kRows][32].
template <Packing kPacking, int kRows>
HWY_INLINE void AddRows(const Activations& x, const BlockVector (&blocks)[kVectors], int64_t at,
                        float* HWY_RESTRICT sums) {
  const DF df;
  const uint8_t* planes = x.planes() + at * 2 * kBlock;
  const float* step = x.step() + at;
  VI dots[kRows][kVectors], others[kRows][kVectors];
  if constexpr (HasHalves(kPacking)) {
    DotPlanes<0, 4>(blocks, planes, others);
    DotPlanes<4, 8>(blocks, planes, dots);
  } else {
    DotPlanes<0, 8>(blocks, planes, dots);
  }
  for (int row = 0; row < kRows; ++row) {
    const VF unit = Step(step[row]);
    for (size_t v = 0; v < kVectors; ++v) {
      float* to = sums + row * kPanel + v * hn::Lanes(df);
      VF y = hn::Load(df, to);
      if constexpr (HasHalves(kPacking)) {
        y = hn::MulAdd(hn::ConvertTo(df, others[row][v]), ScaleByStep(blocks[v].scale[0], unit), y);
        y = hn::MulAdd(hn::ConvertTo(df, dots[row][v]), ScaleByStep(blocks[v].scale[1], unit), y);
      } else {
        y = hn::MulAdd(hn::ConvertTo(df, dots[row][v]), ScaleByStep(blocks[v].scale[0], unit), y);
      }
      if constexpr (HasMinimum(kPacking)) {
        const float sum = x.sum()[at + row];
        const float first = HasHalves(kPacking) ? x.first_sum()[at + row] : sum;
        y = hn::NegMulAdd(blocks[v].minimum[0], hn::Set(df, first), y);
        if constexpr (HasHalves(kPacking)) {
          y = hn::NegMulAdd(blocks[v].minimum[1], hn::Set(df, sum - first), y);
        }
      }
      hn::Store(y, df, to);
    }
  }
}

// The same for a block of elements without scales: one input after another, in f32.
template <Packing kPacking>
HWY_INLINE void AddDense(const Activations& x, const uint8_t* block, int64_t at, int64_t rows,
                         float* HWY_RESTRICT sums) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  constexpr size_t kElement = CodeBytes(kPacking) / (kBlock * kPanel);
  for (int64_t row = 0; row < rows; ++row, sums += kPanel) {
    const uint8_t* planes = x.planes() + (at + row) * 2 * kBlock;
    float values[kBlock];  // of the row, exactly
    for (int64_t i = 0; i < kBlock; ++i) {
      const int integer = 256 * planes[i] + planes[kBlock + i] - kZeroPoint;
      values[i] = x.step()[at + row] * static_cast<float>(integer);
    }
    for (size_t lane = 0; lane < kPanel; lane += lanes) {
      VF y = hn::Load(df, sums + lane);
      for (size_t i = 0; i < kBlock; ++i) {
        const VF weight = LoadDense<kPacking>(block + (i * kPanel + lane) * kElement);
        y = hn::MulAdd(weight, hn::Set(df, values[i]), y);
      }
      hn::Store(y, df, sums + lane);
    }
  }
}

// Adds the product of a block and `rows` rows of x, stored from `at` on, to sums [rows][32].
template <Packing kPacking>
HWY_INLINE void AddBlock(const Activations& x, const uint8_t* block, int64_t at, int64_t rows,
                         float* HWY_RESTRICT sums) {
  if constexpr (IsDense(kPacking)) {
    return AddDense<kPacking>(x, block, at, rows, sums);
  } else {
    const size_t lanes = hn::Lanes(DI());
    for (size_t lane = 0; lane < kPanel; lane += kVectors * lanes) {
      const BlockVector blocks[kVectors] = {LoadBlock<kPacking>(block, lane),
                                            LoadBlock<kPacking>(block, lane + lanes)};
      float* to = sums + lane;
      int64_t row = 0;
      for (; row + 4 <= rows; row += 4, to += 4 * kPanel) {
        AddRows<kPacking, 4>(x, blocks, at + row, to);
      }
      for (; row < rows; ++row, to += kPanel) {
        AddRows<kPacking, 1>(x, blocks, at + row, to);
      }
    }
  }
}

// How many bytes ahead to prefetch. Addresses past the weight's end are prefetched, never read.
constexpr int64_t kAhead = 4096;

// sums [rows of the tile][32] = the product of a panel and a tile of x.
template <Packing kPacking>
HWY_INLINE void SumPanelOf(const Activations& x, int64_t tile, const uint8_t* panel,
                           float* HWY_RESTRICT sums) {
  const int64_t first = tile * kRowTile;
  const int64_t rows = std::min(kRowTile, x.rows() - first);
  std::memset(sums, 0, static_cast<size_t>(rows * kPanel) * sizeof(float));
  for (int64_t block = 0; block < x.blocks(); ++block, panel += BlockBytes(kPacking)) {
    for (int64_t i = 0; i < BlockBytes(kPacking); i += 64) {
      hwy::Prefetch(panel + kAhead + i);
    }
    AddBlock<kPacking>(x, panel, x.At(block, first), rows, sums);
  }
}

// Not inlined: the code of the ten packings would otherwise be compiled three times.
HWY_NOINLINE void SumPanel(const Activations& x, int64_t tile, const Matrix& weight, int64_t panel,
                           float* HWY_RESTRICT sums) {
  const uint8_t* data = weight.data.get() + panel * weight.panel_bytes();
  switch (weight.packing) {
    case Packing::kQ2:
      return SumPanelOf<Packing::kQ2>(x, tile, data, sums);
    case Packing::kQ4:
      return SumPanelOf<Packing::kQ4>(x, tile, data, sums);
    case Packing::kQ4Minimum:
      return SumPanelOf<Packing::kQ4Minimum>(x, tile, data, sums);
    case Packing::kQ5Minimum:
      return SumPanelOf<Packing::kQ5Minimum>(x, tile, data, sums);
    case Packing::kF32:
      return SumPanelOf<Packing::kF32>(x, tile, data, sums);
    case Packing::kF16:
      return SumPanelOf<Packing::kF16>(x, tile, data, sums);
    case Packing::kBF16:
      return SumPanelOf<Packing::kBF16>(x, tile, data, sums);
    case Packing::kQ5:
      return SumPanelOf<Packing::kQ5>(x, tile, data, sums);
    case Packing::kQ6:
      return SumPanelOf<Packing::kQ6>(x, tile, data, sums);
    case Packing::kQ8:
      return SumPanelOf<Packing::kQ8>(x, tile, data, sums);
  }
}

void MultiplyPanelOf(const Activations& x, int64_t tile, const Product& product, int64_t panel) {
  HWY_ALIGN float sums[kRowTile * kPanel];
  const int64_t first = tile * kRowTile;
  const int64_t rows = std::min(kRowTile, x.rows() - first);
  float* y = product.y + first * product.stride + panel * kPanel;
  for (int64_t row = 0; row < rows; ++row) {  // prefetches outputs while the panel is summed
    __builtin_prefetch(y + row * product.stride, 1);
    __builtin_prefetch(y + row * product.stride + kPanel - 1, 1);
  }
  SumPanel(x, tile, *product.weight, panel, sums);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(y + row * product.stride, sums + row * kPanel, kPanel * sizeof(float));
  }
}

void MultiplyGatedPanelOf(const Activations& x, int64_t tile, const Matrix& gate, const Matrix& up,
                          Activation activation, int64_t panel, Activations& out) {
  static_assert(kPanel == kBlock);  // a panel's outputs are rounded together
  const DRow df;
  HWY_ALIGN float gates[kRowTile * kPanel];
  HWY_ALIGN float ups[kRowTile * kPanel];
  SumPanel(x, tile, gate, panel, gates);
  SumPanel(x, tile, up, panel, ups);
  const int64_t first = tile * kRowTile;
  const int64_t rows = std::min(kRowTile, x.rows() - first);
  // A loop of its own: rounding a block is a chain of dependent steps, which would slow this down.
  const auto activate = [&](const auto& function) HWY_ATTR {
    for (int64_t i = 0; i < rows * kPanel; i += static_cast<int64_t>(hn::Lanes(df))) {
      hn::Store(hn::Mul(function(hn::Load(df, gates + i)), hn::Load(df, ups + i)), df, gates + i);
    }
  };
  switch (activation) {
    case Activation::kGelu:
      activate([](VRow gated) HWY_ATTR { return Gelu(gated); });
      break;
    case Activation::kSilu:
      activate([](VRow gated) HWY_ATTR { return Silu(gated); });
      break;
  }
  RoundBlocks([&](int64_t row, int i) HWY_ATTR { return hn::Load(df, gates + row * kPanel + i); },
              rows, out.At(panel, first), 1, out);
}

}  // namespace riffle::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
