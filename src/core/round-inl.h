// f32 to the 16-bit formats, to nearest, ties to even; subnormals are kept, NaNs become quiet.
// Every target gives the same bits: the code is integer arithmetic, or a native conversion where
// that gives the same bits (x86's to bf16 flushes subnormals). Included once per SIMD target.
#if defined(RIFFLE_CORE_ROUND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_CORE_ROUND_INL_H_
#undef RIFFLE_CORE_ROUND_INL_H_
#else
#define RIFFLE_CORE_ROUND_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace riffle::core::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The bits of bf16, one in the lower half of each 32-bit lane.
template <class DF, class VF = hn::Vec<DF>>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<DF>> BF16Bits(DF /*df*/, VF value) {
  const hn::RebindToUnsigned<DF> du;
  const auto bits = hn::BitCast(du, value);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(du, 1));
  // Adds just under half of the last place kept, plus that place's bit: ties go to even.
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffffu));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du, 0x7f800000u));
  return hn::IfThenElse(is_nan, hn::Or(upper, hn::Set(du, 0x40)), rounded);
}

// The bits of f16, in the same way.
template <class DF, class VF = hn::Vec<DF>>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<DF>> F16Bits(DF df, VF value) {
  const hn::RebindToUnsigned<DF> du;
  const auto bits = hn::BitCast(du, value);
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffffu));
  const auto upper = hn::ShiftRight<13>(magnitude);
  const auto odd = hn::And(upper, hn::Set(du, 1));
  // Lowers the exponent's bias from 127 to 15; what overflows f16 becomes infinite.
  const auto rebiased = hn::Sub(magnitude, hn::Set(du, (112u << 23) - 0xfff));
  const auto normal = hn::Min(hn::ShiftRight<13>(hn::Add(rebiased, odd)), hn::Set(du, 0x7c00));
  // Below 2^-14, the smallest normal f16: the last place of x + 0.5 is 2^-24, the smallest
  // subnormal, so the addition rounds.
  const auto sum = hn::Add(hn::BitCast(df, magnitude), hn::Set(df, 0.5f));
  const auto tiny = hn::Sub(hn::BitCast(du, sum), hn::Set(du, 0x3f000000u));
  const auto nan = hn::Or(hn::And(upper, hn::Set(du, 0x1ff)), hn::Set(du, 0x7e00));
  const auto is_tiny = hn::Lt(magnitude, hn::Set(du, 0x38800000u));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du, 0x7f800000u));
  const auto finite = hn::IfThenElse(is_tiny, tiny, normal);
  return hn::Or(sign, hn::IfThenElse(is_nan, nan, finite));
}

// f16 in 16-bit lanes. x86's conversion agrees with F16Bits on all 2^32 floats.
template <class DF, class VF = hn::Vec<DF>>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, DF>> RoundToF16([[maybe_unused]] DF df, VF value) {
  const hn::Rebind<uint16_t, DF> du16;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
  return hn::BitCast(du16, hn::DemoteTo(hn::Rebind<hwy::float16_t, DF>(), value));
#else
  return hn::TruncateTo(du16, F16Bits(df, value));
#endif
}

// bf16 in 16-bit lanes.
template <class DF, class VF = hn::Vec<DF>>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, DF>> RoundToBF16(DF df, VF value) {
  return hn::TruncateTo(hn::Rebind<uint16_t, DF>(), BF16Bits(df, value));
}

}  // namespace riffle::core::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
