// Packing values for the value product. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_PACK_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_PACK_VALUES_INL_H_
#undef RIFFLE_ATTENTION_PACK_VALUES_INL_H_
#else
#define RIFFLE_ATTENTION_PACK_VALUES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "attention/dot-inl.h"
#include "attention/kv_rows.h"
#include "core/bf16_dot.h"
#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::LoadAny;

// Whether any of n operands, a multiple of 16, holds a NaN or an infinity.
HWY_INLINE bool AnyNonFinite(F32Math, const float* values, int n) {
  const FloatTag<16> df;
  auto finite = hn::FirstN(df, hn::MaxLanes(df));
  for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(df))) {
    finite = hn::And(finite, hn::IsFinite(hn::Load(df, values + i)));
  }
  return !hn::AllTrue(df, finite);
}

// Sets a key's values, packed for the value product, to 0.
HWY_INLINE void ClearPackedKey(F32Math, int key, int stride, float* values) {
  std::fill_n(values + key * stride, stride, 0.0f);
}

#if RIFFLE_BF16_DOT
HWY_INLINE void ClearPackedKey(BF16Math, int key, int stride, uint32_t* values) {
  const uint32_t other = key % 2 == 0 ? 0xffff0000u : 0x0000ffffu;  // the even key's half is low
  for (int i = 0; i < stride; ++i) {
    values[key / 2 * stride + i] &= other;
  }
}

// Rows 2i and 2i + 1 of bf16 are interleaved: values[8][stride] pairs; columns from dim on stay as
// they are.
HWY_INLINE void InterleaveRows(const KvRows& rows, int dim, int stride,
                               uint32_t* HWY_RESTRICT values) {
  const hn::CappedTag<uint16_t, 32> d;
  const hn::CappedTag<uint16_t, 8> d8;
  const hn::CappedTag<uint32_t, 16> dw;
  const hn::CappedTag<uint32_t, 4> dw4;
  constexpr int kWords = static_cast<int>(hn::MaxLanes(dw));
  for (int i = 0; i < kGroupKeys; i += 2) {
    const uint8_t* even = rows.row[i];
    const uint8_t* odd = rows.row[i + 1];
    uint32_t* to = values + i / 2 * stride;
    int c = 0;
    for (; c + 2 * kWords <= dim; c += 2 * kWords) {
      const auto a = LoadAny(d, even + 2 * c);
      const auto b = LoadAny(d, odd + 2 * c);
      hn::Store(hn::BitCast(dw, hn::InterleaveWholeLower(d, a, b)), dw, to + c);
      hn::Store(hn::BitCast(dw, hn::InterleaveWholeUpper(d, a, b)), dw, to + c + kWords);
    }
    for (; c < dim; c += 8) {
      const auto a = LoadAny(d8, even + 2 * c);
      const auto b = LoadAny(d8, odd + 2 * c);
      hn::Store(hn::BitCast(dw4, hn::InterleaveWholeLower(d8, a, b)), dw4, to + c);
      hn::Store(hn::BitCast(dw4, hn::InterleaveWholeUpper(d8, a, b)), dw4, to + c + 4);
    }
  }
}

HWY_INLINE bool AnyNonFinite(BF16Math, const uint32_t* values, int n) {
  const hn::CappedTag<uint32_t, 16> dw;
  const hn::Repartition<uint16_t, decltype(dw)> d;
  const auto inf = hn::Set(d, uint16_t{0x7f80});
  auto found = hn::Eq(inf, hn::Zero(d));
  for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(dw))) {
    const auto x = hn::BitCast(d, hn::Load(dw, values + i));
    found = hn::Or(found, hn::Eq(hn::And(x, inf), inf));
  }
  return !hn::AllFalse(d, found);
}
#endif

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
