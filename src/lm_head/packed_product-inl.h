// The product of packed operands, as register-blocked outer products. Every sum is one chain of
// additions in the order of the inputs, in a lane of its own, whatever the blocking and the vector
// length. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PACKED_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PACKED_PRODUCT_INL_H_
#undef RIFFLE_LM_HEAD_PACKED_PRODUCT_INL_H_
#else
#define RIFFLE_LM_HEAD_PACKED_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include "lm_head/weight_source-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::PrefetchAt;

// Which cache lines of W a kernel prefetches. When it multiplies operand i of a line, it prefetches
// a later line of column[i], column[i + step], ..., `times` columns in all. So during each line of
// operands it fetches one line of line_operands * times columns.
struct PrefetchPlan {
  const uint8_t* const* column = nullptr;
  int times = 0;  // 0: prefetches nothing
  int step = 0;
  int line_operands = 0;
  int64_t line_bytes = 0;
  int64_t first_byte = 0;  // of the first operand, from the start of the k block
};

// Dense weights: one chain over the k block is added to the sums. Q8_0: one chain per block, times
// the block's scale. (Not inlined, it was 4 % slower at 256 rows.)
//
// The pragmas are for clang, which otherwise unrolls these loops too late to keep the sums in
// registers: 12 rows took 2.1 times as long, 32 rows 1.2 times. g++ makes the same code without.
template <class Math, bool kQ8, bool kPrefetch, int kRows>
HWY_INLINE void PackedKernel(const KBlockProduct& product, const WeightTile& tile, int row,
                             int column, const PrefetchPlan& plan) {
  const LaneF32 df;
  using Operand = typename Math::Operand;
  const hn::Rebind<Operand, LaneF32> dw;
  constexpr int kRowOperands = kKBlock / Math::kPerOperand;
  const int operands = tile.padded() / Math::kPerOperand;
  const Operand* HWY_RESTRICT x = static_cast<const Operand*>(product.x) + row * kRowOperands;
  const Operand* HWY_RESTRICT w = reinterpret_cast<const Operand*>(product.w) + column * operands;
  float* HWY_RESTRICT sums = product.sums + row * kTile + column;
  VecF32 sum[kRows][2];
  VecF32 total[kRows][2];  // Q8_0: stays in registers for the whole k block
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      sum[r][v] = hn::Zero(df);
      total[r][v] = kQ8 ? hn::Load(df, sums + r * kTile + v * kLanes) : sum[r][v];
    }
  }
  constexpr int kBlock = static_cast<int>(kQ8Block) / Math::kPerOperand;
  const int line = kQ8 ? kBlock : kPrefetch ? plan.line_operands : operands;
  int64_t byte = plan.first_byte;
  for (int begin = 0; begin < operands; begin += line, byte += plan.line_bytes) {
    [[maybe_unused]] const int64_t prefetched = tile.Prefetched(byte);
    for (int i = 0; i < line; ++i, w += kPanel, ++x) {
      if constexpr (kPrefetch) {  // a branch at every operand took 5 % at 256 rows
        for (int j = 0; j < plan.times; ++j) {
          PrefetchAt(plan.column[i + j * plan.step], prefetched);
        }
      }
      const auto w0 = hn::Load(dw, w);
      const auto w1 = hn::Load(dw, w + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Operand value = x[r * kRowOperands];
        sum[r][0] = Math::Step(df, value, w0, sum[r][0]);
        sum[r][1] = Math::Step(df, value, w1, sum[r][1]);
      }
    }
    if constexpr (kQ8) {
      const float* scales = tile.scales + begin / kBlock * kTile + column;
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < 2; ++v) {
          total[r][v] = hn::MulAdd(hn::Load(df, scales + v * kLanes), sum[r][v], total[r][v]);
          sum[r][v] = hn::Zero(df);
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      float* at = sums + r * kTile + v * kLanes;
      hn::Store(kQ8 ? total[r][v] : hn::Add(hn::Load(df, at), sum[r][v]), df, at);
    }
  }
}

// Runs the kernel for `rows` rows, at most kRows of them.
template <class Math, bool kQ8, bool kPrefetch, int kRows>
HWY_INLINE void PackedRows(const KBlockProduct& product, const WeightTile& tile, int row, int rows,
                           int column, const PrefetchPlan& plan) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return PackedRows<Math, kQ8, kPrefetch, kRows - 1>(product, tile, row, rows, column, plan);
    }
  }
  PackedKernel<Math, kQ8, kPrefetch, kRows>(product, tile, row, column, plan);
}

// Multiplies all rows and columns. Weight formats with the same operands share this function,
// because it makes up most of this file's compiled code. Of `plan`, only line_* and first_byte are
// given.
template <class Math, bool kQ8>
HWY_NOINLINE void PackedProduct(const KBlockProduct& product, const WeightTile& tile, bool prefetch,
                                PrefetchPlan plan) {
  // The sums take 24 of 32 registers, or 12 of 16. Q8_0 has a sum and a total for each result.
  constexpr int kRows = (core::HWY_NAMESPACE::kHas32Vectors ? 12 : 6) / (kQ8 ? 2 : 1);
  const int groups = (product.rows + kRows - 1) / kRows;
  // Only the first kernels prefetch, each for line_operands columns or a multiple of them.
  const int shares = kTile / plan.line_operands;
  const int kernels = kTile / kPanel * groups;
  const int prefetching = kernels < shares ? kernels : shares;
  plan.step = prefetching * plan.line_operands;
  int kernel = 0;
  for (int column = 0; column < kTile; column += kPanel) {
    for (int group = 0; group < groups; ++group, ++kernel) {  // groups are of about the same size
      const int begin = product.rows * group / groups;
      const int rows = product.rows * (group + 1) / groups - begin;
      if (prefetch && kernel < prefetching) {
        plan.column = tile.column + kernel * plan.line_operands;
        plan.times = (shares + prefetching - 1 - kernel) / prefetching;
        PackedRows<Math, kQ8, true, kRows>(product, tile, begin, rows, column, plan);
      } else {
        PackedRows<Math, kQ8, false, kRows>(product, tile, begin, rows, column, {});
      }
    }
  }
}

template <class Source>
void MultiplyPacked(const KBlockProduct& product, const WeightTile& tile, bool prefetch) {
  HWY_DASSERT(product.rows > 0);
  HWY_DASSERT(0 < tile.inputs && tile.inputs <= kKBlock);
  HWY_DASSERT(!Source::kQ8 || tile.inputs % static_cast<int>(kQ8Block) == 0);
  PrefetchPlan plan;
  plan.line_operands = Source::kPerLine;
  plan.line_bytes = Source::kQ8 ? kQ8BlockBytes : 64;
  plan.first_byte = Source::Offset(0);
  PackedProduct<typename Source::Math, Source::kQ8>(product, tile, prefetch, plan);
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
