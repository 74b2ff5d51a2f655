// Loads of any dtype at any address. Included once per SIMD target.
#if defined(RIFFLE_CORE_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_CORE_LOAD_INL_H_
#undef RIFFLE_CORE_LOAD_INL_H_
#else
#define RIFFLE_CORE_LOAD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace riffle::core::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements at any address. Highway's unaligned loads take a typed pointer, which sanitizers report
// when it is misaligned; bytes have no alignment.
template <class D>
HWY_INLINE hn::Vec<D> LoadAny(D d, const uint8_t* p) {
  const hn::Repartition<uint8_t, D> d8;
  return hn::BitCast(d, hn::LoadU(d8, p));
}

// f16 to f32, exactly, subnormals, infinities and NaNs included. On targets without a conversion
// Highway's emulation would turn infinities into finite numbers.
template <class DF, class VH>
HWY_INLINE hn::Vec<DF> FromF16(DF df, VH half) {
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<uint16_t, DF> du16;
  const auto bits = hn::PromoteTo(du, hn::BitCast(du16, half));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000)));
  const auto magnitude = hn::ShiftLeft<13>(hn::And(bits, hn::Set(du, 0x7fff)));
  // The multiplication raises the exponent's bias from 15 to 127.
  const auto finite = hn::BitCast(du, hn::Mul(hn::BitCast(df, magnitude), hn::Set(df, 0x1p112f)));
  const auto special = hn::Ge(magnitude, hn::Set(du, 31u << 23));
  const auto wide = hn::IfThenElse(special, hn::Or(finite, hn::Set(du, 0x7f800000u)), finite);
  return hn::BitCast(df, hn::Or(sign, wide));
#else
  return hn::PromoteTo(df, half);
#endif
}

}  // namespace riffle::core::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
