// What decode and prefill are measured against. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_ROOFLINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_ROOFLINE_INL_H_
#undef RIFFLE_ATTENTION_ROOFLINE_INL_H_
#else
#define RIFFLE_ATTENTION_ROOFLINE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "attention/attention_kernels.h"
#include "attention/dot-inl.h"
#include "attention/find_rows-inl.h"
#include "attention/kv_rows.h"
#include "core/bf16_dot.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest byte of 16 rows while 16 others are prefetched.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V MaxOfRows(D d, const KvRows& rows, const KvRows& ahead, size_t bytes, V max) {
  const hn::CappedTag<uint8_t, 16> d16;
  V other = max;
  for (int r = 0; r < kGroupKeys; ++r) {
    const uint8_t* row = rows.row[r];
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {
      __builtin_prefetch(ahead.row[r] + i, 0, 2);
      for (size_t j = 0; j < 64; j += 2 * hn::MaxLanes(d)) {
        max = hn::Max(max, hn::LoadU(d, row + i + j));
        other = hn::Max(other, hn::LoadU(d, row + i + j + hn::MaxLanes(d)));
      }
    }
    if (i < bytes) {
      __builtin_prefetch(ahead.row[r] + i, 0, 2);
    }
    for (; i + 16 <= bytes; i += 16) {
      max = hn::Max(max, hn::ResizeBitCast(d, hn::LoadU(d16, row + i)));
    }
    if (i < bytes) {
      max = hn::Max(max, hn::ResizeBitCast(d, hn::LoadN(d16, row + i, bytes - i)));
    }
  }
  return hn::Max(max, other);
}

uint8_t ReadItems(const AttentionArgs& args, const WorkItem* begin, const WorkItem* end) {
  const hn::CappedTag<uint8_t, 32> d;
  TileCursor tile(args, begin, end);
  TileCursor ahead(args, begin, end);
  for (int i = TilesAhead(args); i > 0; --i) {
    ahead.Next();
  }
  auto max = hn::Zero(d);
  TileRows rows;
  TileRows next;
  for (; !tile.done(); tile.Next(), ahead.Next()) {
    FindTileRows(args, tile, &rows);
    FindTileRows(args, ahead, &next);
    for (int group = 0; group < kGroupsPerBlock; ++group) {
      max = MaxOfRows(d, rows.keys[group], next.keys[group], args.keys.row_bytes, max);
    }
    for (int group = 0; !args.values_in_keys && group < kGroupsPerBlock; ++group) {
      max = MaxOfRows(d, rows.values[group], next.values[group], args.values.row_bytes, max);
    }
  }
  return hn::ReduceMax(d, max);
}

// Independent chains of dot products; returns the number of floating-point operations.
template <class Math>
double RunDotsOf(int64_t steps) {
  const FloatTag<16> df;
  const hn::Rebind<typename Math::Operand, decltype(df)> dw;
  constexpr int kChains = core::HWY_NAMESPACE::kHas32Vectors ? 16 : 12;
  // Zeros unknown to the compiler, which would otherwise merge the chains into one. (Hiding them
  // inside the loop keeps the sums in memory.)
  alignas(64) float sums[kChains * hn::MaxLanes(df)] = {};
  float* at = sums;
  hwy::PreventElision(at);
  typename Math::Operand operand = 0;
  hwy::PreventElision(operand);
  const auto x = hn::Set(dw, operand);
  hn::Vec<decltype(df)> sum[kChains];
  for (int i = 0; i < kChains; ++i) {
    sum[i] = hn::Load(df, at + i * hn::MaxLanes(df));
  }
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kChains; ++i) {
      sum[i] = Math::Step(df, operand, x, sum[i]);
    }
  }
  for (int i = 0; i < kChains; ++i) {
    hn::Store(sum[i], df, at + i * hn::MaxLanes(df));
  }
  hwy::PreventElision(at);
  return 2.0 * Math::kPerOperand * static_cast<double>(steps) * kChains * hn::MaxLanes(df);
}

double RunDots(DType dtype, int64_t steps) {
#if RIFFLE_BF16_DOT
  if (dtype == DType::kBF16) {
    return RunDotsOf<BF16Math>(steps);
  }
#endif
  (void)dtype;
  return RunDotsOf<F32Math>(steps);
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
