// Converts f32 to elements of pages, and callers' elements to f32. Included once per SIMD target.
#if defined(RIFFLE_KV_CACHE_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_KV_CACHE_ENCODE_INL_H_
#undef RIFFLE_KV_CACHE_ENCODE_INL_H_
#else
#define RIFFLE_KV_CACHE_ENCODE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "core/load-inl.h"
#include "core/round-inl.h"
#include "riffle/types.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::kv_cache::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::LoadAny;

// Vectors of at most 16 floats: kernels process a row in steps of this many elements.
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;
inline constexpr size_t kMaxLanes = 16;

template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreAny(D /*d*/, V value, uint8_t* p) {
  const hn::Repartition<uint8_t, D> d8;
  hn::StoreU(hn::BitCast(d8, value), d8, p);
}

// Loads as many elements of kIn as DF has lanes, from any address; exact.
template <DType kIn>
HWY_INLINE VF LoadF32(DF df, const uint8_t* p) {
  if constexpr (kIn == DType::kF32) {
    return LoadAny(df, p);
  } else if constexpr (kIn == DType::kF16) {
    return core::HWY_NAMESPACE::FromF16(df, LoadAny(hn::Rebind<hwy::float16_t, DF>(), p));
  } else {
    const hn::RebindToUnsigned<DF> du;
    const auto bits = hn::PromoteTo(du, LoadAny(hn::Rebind<uint16_t, DF>(), p));
    return hn::BitCast(df, hn::ShiftLeft<16>(bits));
  }
}

// Loads the first n < lanes elements, then zeros. Reads no byte past them.
template <DType kIn>
HWY_INLINE VF LoadF32N(DF df, const uint8_t* p, size_t n) {
  HWY_DASSERT(n < hn::Lanes(df));
  HWY_ALIGN uint8_t padded[kMaxLanes * sizeof(float)] = {};
  std::memcpy(padded, p, n * SizeOf(kIn));
  return LoadF32<kIn>(df, padded);
}

// The codes of an 8-bit float with kMantissa bits of mantissa and the exponent bias kBias, one in
// the lowest byte of each lane. What rounds to more than kMax becomes kMax; a NaN becomes kNaN.
template <int kMantissa, int kBias, uint32_t kMax, uint32_t kNaN>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<DF>> Float8Codes(DF df, VF value) {
  constexpr int kDropped = 23 - kMantissa;
  const hn::RebindToUnsigned<DF> du;
  const auto bits = hn::BitCast(du, value);
  const auto sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(du, 0x80));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffffu));
  const auto odd = hn::And(hn::ShiftRight<kDropped>(magnitude), hn::Set(du, 1));
  // Adds just under half of the last place kept, plus that place's bit: ties go to even.
  constexpr uint32_t kHalf = (1u << (kDropped - 1)) - 1;
  const auto rebiased = hn::Sub(magnitude, hn::Set(du, ((127u - kBias) << 23) - kHalf));
  const auto normal = hn::Min(hn::ShiftRight<kDropped>(hn::Add(rebiased, odd)), hn::Set(du, kMax));
  // Below the smallest normal number, 2^(1 - kBias): the last place of the sum is that of a
  // subnormal, 2^(1 - kBias - kMantissa), so the addition rounds.
  constexpr uint32_t kMagic = (127u + 1 - kBias - kMantissa + 23) << 23;
  const auto sum = hn::Add(hn::BitCast(df, magnitude), hn::BitCast(df, hn::Set(du, kMagic)));
  const auto tiny = hn::Sub(hn::BitCast(du, sum), hn::Set(du, kMagic));
  const auto is_tiny = hn::Lt(magnitude, hn::Set(du, (127u + 1 - kBias) << 23));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du, 0x7f800000u));
  const auto number = hn::IfThenElse(is_tiny, tiny, normal);
  return hn::Or(sign, hn::IfThenElse(is_nan, hn::Set(du, kNaN), number));
}

// Rounds to -128..127, ties to even; NaN becomes 0.
HWY_INLINE hn::Vec<hn::Rebind<int8_t, DF>> Int8Codes(DF df, VF value) {
  const auto number = hn::IfThenElseZero(hn::Eq(value, value), value);
  const auto limited = hn::Min(hn::Max(number, hn::Set(df, -128.0f)), hn::Set(df, 127.0f));
  return hn::DemoteTo(hn::Rebind<int8_t, DF>(), hn::NearestInt(limited));
}

// Stores elements of kOut at any address.
template <DType kOut>
HWY_INLINE void Encode(DF df, VF value, uint8_t* out) {
  const hn::Rebind<uint8_t, DF> d8;
  const hn::Rebind<uint16_t, DF> d16;
  if constexpr (kOut == DType::kF32) {
    StoreAny(df, value, out);
  } else if constexpr (kOut == DType::kF16) {
    StoreAny(d16, core::HWY_NAMESPACE::RoundToF16(df, value), out);
  } else if constexpr (kOut == DType::kBF16) {
    StoreAny(d16, core::HWY_NAMESPACE::RoundToBF16(df, value), out);
  } else if constexpr (kOut == DType::kE4M3) {
    StoreAny(d8, hn::TruncateTo(d8, Float8Codes<3, 7, 0x7e, 0x7f>(df, value)), out);
  } else if constexpr (kOut == DType::kE5M2) {
    StoreAny(d8, hn::TruncateTo(d8, Float8Codes<2, 15, 0x7c, 0x7e>(df, value)), out);
  } else {
    StoreAny(hn::Rebind<int8_t, DF>(), Int8Codes(df, value), out);
  }
}

// Stores the first n < lanes elements. Writes no byte past them.
template <DType kOut>
HWY_INLINE void EncodeN(DF df, VF value, uint8_t* out, size_t n) {
  HWY_DASSERT(n < hn::Lanes(df));
  HWY_ALIGN uint8_t padded[kMaxLanes * sizeof(float)];
  Encode<kOut>(df, value, padded);
  std::memcpy(out, padded, n * SizeOf(kOut));
}

}  // namespace riffle::kv_cache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
