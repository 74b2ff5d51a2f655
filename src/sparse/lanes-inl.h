// Vectors of the sparse kernels, and rows of any dtype as f32. Included once per SIMD target.
#if defined(RIFFLE_SPARSE_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_LANES_INL_H_
#undef RIFFLE_SPARSE_LANES_INL_H_
#else
#define RIFFLE_SPARSE_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/load-inl.h"
#include "riffle/types.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

using LaneF32 = hn::CappedTag<float, 16>;
using LaneI32 = hn::RebindToSigned<LaneF32>;
using LaneU32 = hn::RebindToUnsigned<LaneF32>;
using VecF32 = hn::Vec<LaneF32>;
using VecI32 = hn::Vec<LaneI32>;
using VecU32 = hn::Vec<LaneU32>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(LaneF32()));

// e4m3 codes, one in each 32-bit lane, exact. A code whose exponent is shifted into the exponent
// field of an f32 reads as a value 2^120 times too small, also for subnormals.
HWY_INLINE VecF32 FromE4M3(VecU32 code) {
  const LaneF32 df;
  const LaneU32 du;
  const auto magnitude = hn::And(code, hn::Set(du, 0x7fu));
  const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(du, 0x80u)));
  const auto value = hn::Mul(hn::BitCast(df, hn::ShiftLeft<20>(magnitude)), hn::Set(df, 0x1p120f));
  const auto bits = hn::Or(hn::BitCast(du, value), sign);
  const auto is_nan = hn::Eq(magnitude, hn::Set(du, 0x7fu));
  return hn::BitCast(df, hn::IfThenElse(is_nan, hn::Set(du, 0x7fc00000u), bits));
}

// kLanes elements of f32, f16, bf16, e4m3 or i8 as f32, exact.
HWY_INLINE VecF32 LoadF32(DType dtype, const uint8_t* from) {
  const LaneF32 df;
  switch (dtype) {
    case DType::kF16:
      return FromF16(df, LoadAny(hn::Rebind<hwy::float16_t, LaneF32>(), from));
    case DType::kBF16:
      return hn::PromoteTo(df, LoadAny(hn::Rebind<hwy::bfloat16_t, LaneF32>(), from));
    case DType::kE4M3:
      return FromE4M3(hn::PromoteTo(LaneU32(), hn::LoadU(hn::Rebind<uint8_t, LaneF32>(), from)));
    case DType::kI8:
      return hn::ConvertTo(df,
                           hn::PromoteTo(LaneI32(), LoadAny(hn::Rebind<int8_t, LaneF32>(), from)));
    default:
      return LoadAny(df, from);
  }
}

// `count` elements, a multiple of 16, as f32.
HWY_INLINE void RowToF32(DType dtype, const uint8_t* from, int count, float* to) {
  HWY_DASSERT(count % 16 == 0);
  const auto bytes = static_cast<int>(SizeOf(dtype));
  for (int i = 0; i < count; i += kLanes) {
    hn::StoreU(LoadF32(dtype, from + i * bytes), LaneF32(), to + i);
  }
}

// Converts f32 that are exact in bf16 to bf16.
HWY_INLINE void ExactBF16(const float* from, int count, uint16_t* to) {
  for (int i = 0; i < count; i += kLanes) {
    const auto bits = hn::BitCast(LaneU32(), hn::LoadU(LaneF32(), from + i));
    hn::StoreU(hn::TruncateTo(hn::Rebind<uint16_t, LaneF32>(), hn::ShiftRight<16>(bits)),
               hn::Rebind<uint16_t, LaneF32>(), to + i);
  }
}

// The largest magnitude of x[0, count); a NaN or infinity if there is one.
HWY_INLINE float MaxMagnitude(const float* x, int count) {
  const LaneI32 di;
  auto max = hn::Zero(di);
  for (int i = 0; i < count; i += kLanes) {
    const auto bits = hn::BitCast(di, hn::LoadU(LaneF32(), x + i));
    max = hn::Max(max, hn::And(bits, hn::Set(di, 0x7fffffff)));
  }
  const int32_t bits = hn::ReduceMax(di, max);
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// A row of a smaller magnitude counts as zeros: 127 / magnitude might overflow.
constexpr float kMinMagnitude = 0x1p-100f;

// x[0, count) as scale * codes, |code| <= 127; returns the scale. A row that is not finite gets
// codes 0 and the scale NaN. Divisions, products and roundings are IEEE's: the same bits on every
// target.
HWY_INLINE float QuantizeInt8(const float* x, int count, int8_t* codes) {
  const LaneF32 df;
  const LaneI32 di;
  const hn::Rebind<int8_t, LaneF32> d8;
  const float max = MaxMagnitude(x, count);
  const bool finite = max <= hwy::HighestValue<float>();
  if (!finite || max < kMinMagnitude) {
    std::fill_n(codes, count, int8_t{0});
    return finite ? 0.0f : hwy::ConvertScalarTo<float>(__builtin_nanf(""));
  }
  const auto inverse = hn::Set(df, 127.0f / max);
  for (int i = 0; i < count; i += kLanes) {
    const auto code = hn::NearestInt(hn::Mul(hn::LoadU(df, x + i), inverse));
    const auto clamped = hn::Min(hn::Max(code, hn::Set(di, -127)), hn::Set(di, 127));
    hn::StoreU(hn::DemoteTo(d8, clamped), d8, codes + i);
  }
  return max / 127.0f;
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
