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
#include "attention/kv_rows.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest byte of 16 rows; `bytes` is a multiple of 16.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V MaxOfRows(D d, const KvRows& rows, size_t bytes, V max) {
  const hn::CappedTag<uint8_t, 16> d16;
  V other = max;
  for (const uint8_t* row : rows.row) {
    size_t i = 0;
    for (; i + 2 * hn::Lanes(d) <= bytes; i += 2 * hn::Lanes(d)) {
      max = hn::Max(max, hn::LoadU(d, row + i));
      other = hn::Max(other, hn::LoadU(d, row + i + hn::Lanes(d)));
    }
    for (; i < bytes; i += 16) {
      const auto x = hn::LoadU(d16, row + i);
      max = hn::Max(max, hn::ResizeBitCast(d, x));
    }
  }
  return hn::Max(max, other);
}

uint8_t ReadUnitsImpl(const AttentionArgs& args, const Unit* begin, const Unit* end) {
  const hn::CappedTag<uint8_t, 64> d;
  TileCursor tile(args, begin, end);
  TileCursor ahead(args, begin, end);
  for (int i = TilesAhead(args); i > 0; --i) {
    ahead.Next();
  }
  const size_t bytes = static_cast<size_t>(args.shape.head_dim) * SizeOf(args.kv_dtype);
  auto max = hn::Zero(d);
  for (; !tile.done(); tile.Next(), ahead.Next()) {
    for (int part = 0; part < 2 * kGroups; ++part) {
      ahead.Prefetch(part);
      const KvRows rows =
          FindRows(args, part < kGroups ? args.keys : args.values, tile.unit().seq, tile.head(),
                   tile.block() + part % kGroups * kGroupKeys, tile.keys());
      max = MaxOfRows(d, rows, bytes, max);
    }
  }
  return hn::ReduceMax(d, max);
}

// 16 independent chains of dot products; returns floating-point operations.
template <class Math>
double Spin(int64_t steps) {
  const FloatTag<16> df;
  const hn::Rebind<typename Math::Word, decltype(df)> dw;
  constexpr int kChains = HWY_CAP_GE512 ? 16 : 12;
  hn::Vec<decltype(df)> sum[kChains];
  for (auto& s : sum) {
    s = hn::Zero(df);
  }
  const auto x = hn::Zero(dw);
  typename Math::Word word = 0;
  for (int64_t i = 0; i < steps; ++i) {
    hwy::PreventElision(word);
    for (auto& s : sum) {
      s = Math::Step(df, word, x, s);
    }
  }
  auto all = sum[0];
  for (const auto& s : sum) {
    all = hn::Add(all, s);
  }
  float result = hn::ReduceSum(df, all);
  hwy::PreventElision(result);
  return 2.0 * Math::kPerWord * static_cast<double>(steps) * kChains * hn::MaxLanes(df);
}

double SpinDotsImpl(DType dtype, int64_t steps) {
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
  if (dtype == DType::kBF16) {
    return Spin<BF16Math>(steps);
  }
#endif
  (void)dtype;
  return Spin<F32Math>(steps);
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
