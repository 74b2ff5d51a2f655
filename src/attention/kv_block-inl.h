// Laying out rows of keys and values for the kernels. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_KV_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_KV_BLOCK_INL_H_
#undef RIFFLE_ATTENTION_KV_BLOCK_INL_H_
#else
#define RIFFLE_ATTENTION_KV_BLOCK_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "attention/dot-inl.h"
#include "attention/kv_rows.h"
#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

// 8 elements at a time divide every head_dim.
using Tag8 = hn::CappedTag<float, 8>;

// out[0, n) = n elements of `dtype` as f32; n is a multiple of the vector, out aligned.
template <class DF>
HWY_INLINE void ToF32As(DF df, DType dtype, const uint8_t* from, int n, float* HWY_RESTRICT out) {
  constexpr int kN = static_cast<int>(hn::MaxLanes(DF()));
  if (dtype == DType::kF32) {
    for (int i = 0; i < n; i += kN) {
      hn::Store(LoadAny(df, from + 4 * i), df, out + i);
    }
  } else if (dtype == DType::kBF16) {
    const hn::Rebind<hwy::bfloat16_t, DF> dh;
    for (int i = 0; i < n; i += kN) {
      hn::Store(hn::PromoteTo(df, LoadAny(dh, from + 2 * i)), df, out + i);
    }
  } else {
    const hn::Rebind<hwy::float16_t, DF> dh;
    for (int i = 0; i < n; i += kN) {
      hn::Store(FromF16(df, LoadAny(dh, from + 2 * i)), df, out + i);
    }
  }
}

// The same for n a multiple of 8.
HWY_INLINE void ToF32(DType dtype, const uint8_t* from, int n, float* HWY_RESTRICT out) {
  const int whole = n / 16 * 16;
  ToF32As(FloatTag<16>(), dtype, from, whole, out);
  if (whole < n) {
    ToF32As(Tag8(), dtype, from + static_cast<size_t>(whole) * SizeOf(dtype), 8, out + whole);
  }
}

// Group of 16 keys -> keys[16][Math::kKeyStride].
HWY_INLINE void PackKeys(F32Math, DType dtype, const KvRows& rows, int dim, float* keys) {
  for (int i = 0; i < kGroupKeys; ++i) {
    ToF32(dtype, rows.row[i], dim, keys + i * F32Math::kKeyStride);
  }
}

// Group of 16 values -> values[16][columns]; columns from dim on stay as they are.
HWY_INLINE void PackValues(F32Math, DType dtype, const KvRows& rows, int dim, int columns,
                           float* values) {
  for (int i = 0; i < kGroupKeys; ++i) {
    ToF32(dtype, rows.row[i], dim, values + i * columns);
  }
}

// One scale, of any address.
HWY_INLINE float ScaleAt(DType dtype, const uint8_t* from) {
  uint32_t bits = 0;
  std::memcpy(&bits, from, SizeOf(dtype));
  if (dtype == DType::kF16) {
    alignas(32) float scale[8];
    alignas(16) const uint16_t half[8] = {static_cast<uint16_t>(bits)};
    ToF32(dtype, reinterpret_cast<const uint8_t*>(half), 8, scale);
    return scale[0];
  }
  bits <<= dtype == DType::kBF16 ? 16 : 0;
  float scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return scale;
}

// Group of 16 rows of int8 and the scale of each -> to[16][stride].
HWY_INLINE void PackScaledRows(F32Math, DType dtype, const KvRows& rows, const KvRows& scales,
                               float divisor, int dim, int stride, float* HWY_RESTRICT to) {
  const Tag8 df;
  const hn::Rebind<int8_t, Tag8> d8;
  const hn::Rebind<int32_t, Tag8> d32;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  for (int row = 0; row < kGroupKeys; ++row, to += stride) {
    const auto scale = hn::Set(df, ScaleAt(dtype, scales.row[row]) / divisor);
    for (int i = 0; i < dim; i += kN) {
      const auto x = hn::PromoteTo(d32, LoadAny(d8, rows.row[row] + i));
      hn::Store(hn::Mul(hn::ConvertTo(df, x), scale), df, to + i);
    }
  }
}

// Whether any of n words, a multiple of 16, holds a NaN or an infinity.
HWY_INLINE bool AnyNonFinite(F32Math, const float* values, int n) {
  const FloatTag<16> df;
  auto finite = hn::FirstN(df, hn::MaxLanes(df));
  for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(df))) {
    finite = hn::And(finite, hn::IsFinite(hn::Load(df, values + i)));
  }
  return !hn::AllTrue(df, finite);
}

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
// n elements of int8 as bf16, which holds every one of them exactly; n is a multiple of the vector.
template <class DF>
HWY_INLINE void IntegersToBF16(DF df, const uint8_t* from, int n, uint8_t* to) {
  const hn::Rebind<int8_t, DF> d8;
  const hn::Rebind<int32_t, DF> d32;
  const hn::Rebind<hwy::bfloat16_t, DF> dh;
  const hn::Repartition<uint8_t, decltype(dh)> du8;
  constexpr int kN = static_cast<int>(hn::MaxLanes(DF()));
  for (int i = 0; i < n; i += kN) {
    const auto x = hn::ConvertTo(df, hn::PromoteTo(d32, LoadAny(d8, from + i)));
    hn::StoreU(hn::BitCast(du8, hn::DemoteTo(dh, x)), du8, to + 2 * i);
  }
}

// Group of 16 rows of int8, without their scales -> bf16 in to[16][stride words].
HWY_INLINE void PackIntegers(const KvRows& rows, int dim, int stride, uint32_t* to) {
  const int whole = dim / 16 * 16;
  for (int row = 0; row < kGroupKeys; ++row, to += stride) {
    auto* bytes = reinterpret_cast<uint8_t*>(to);
    IntegersToBF16(FloatTag<16>(), rows.row[row], whole, bytes);
    IntegersToBF16(FloatTag<8>(), rows.row[row] + whole, dim - whole, bytes + 2 * whole);
  }
}

HWY_INLINE void PackKeys(BF16Math, DType, const KvRows& rows, int dim, uint32_t* keys) {
  const hn::CappedTag<uint8_t, 64> d;
  const hn::CappedTag<uint8_t, 16> d16;
  const int bytes = 2 * dim;
  for (int i = 0; i < kGroupKeys; ++i) {
    const uint8_t* from = rows.row[i];
    auto* to = reinterpret_cast<uint8_t*>(keys + i * BF16Math::kKeyStride);
    int b = 0;
    for (; b + 64 <= bytes; b += 64) {
      hn::StoreU(hn::LoadU(d, from + b), d, to + b);
    }
    for (; b < bytes; b += 16) {
      hn::StoreU(hn::LoadU(d16, from + b), d16, to + b);
    }
  }
}

// Rows 2i and 2i + 1 are interleaved: values[8][columns] words.
HWY_INLINE void PackValues(BF16Math, DType, const KvRows& rows, int dim, int columns,
                           uint32_t* values) {
  const hn::CappedTag<uint16_t, 32> d;
  const hn::CappedTag<uint16_t, 8> d8;
  const hn::CappedTag<uint32_t, 16> dw;
  const hn::CappedTag<uint32_t, 4> dw4;
  for (int i = 0; i < kGroupKeys; i += 2) {
    const uint8_t* even = rows.row[i];
    const uint8_t* odd = rows.row[i + 1];
    uint32_t* to = values + i / 2 * columns;
    int c = 0;
    for (; c + 32 <= dim; c += 32) {
      const auto a = LoadAny(d, even + 2 * c);
      const auto b = LoadAny(d, odd + 2 * c);
      hn::Store(hn::BitCast(dw, hn::InterleaveWholeLower(d, a, b)), dw, to + c);
      hn::Store(hn::BitCast(dw, hn::InterleaveWholeUpper(d, a, b)), dw, to + c + 16);
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
  for (int i = 0; i < n; i += 16) {
    const auto x = hn::BitCast(d, hn::Load(dw, values + i));
    found = hn::Or(found, hn::Eq(hn::And(x, inf), inf));
  }
  return !hn::AllFalse(d, found);
}
#endif

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
