// 2^x and tanh on vectors of f32. An element's result has the same bits whatever the length of the
// vector. Included once per SIMD target.
#if defined(RIFFLE_CORE_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_CORE_EXP_INL_H_
#undef RIFFLE_CORE_EXP_INL_H_
#else
#define RIFFLE_CORE_EXP_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace riffle::core::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 2^x for x <= 127, within 1.5 ulp. Below -126.5 the result is 0; NaN stays NaN; 2^0 is exactly 1.
// The polynomial is the minimax fit of 2^f on [-1/2, 1/2] with constant 1: relative error 1.6e-8 in
// f32 coefficients.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  // Keeps a NaN: if an operand is NaN, x86's Max returns the second operand, ARM's the number.
  const V least = hn::Set(d, -127.0f);
  x = HWY_ARCH_X86 ? hn::Max(least, x) : hn::IfThenElse(hn::Lt(x, least), least, x);
  // Adding 1.5 * 2^23 + 127 leaves round(x) + 127, the exponent of 2^round(x), in the low bits.
  const V magic = hn::Set(d, 12582912.0f + 127.0f);
  const V shifted = hn::Add(x, magic);
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  const V scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  V p = hn::MulAdd(f, hn::Set(d, 0x1.41fbbcp-13f), hn::Set(d, 0x1.5f3e54p-10f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.3b2d4cp-7f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.c6aee8p-5f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.ebfbdcp-3f));
  p = hn::MulAdd(f, p, hn::Set(d, 0x1.62e430p-1f));
  p = hn::MulAdd(f, p, hn::Set(d, 1.0f));
  return hn::Mul(p, scale);
}

// tanh(x) within 3 ulp; NaN stays NaN. Below 0.625 it is a minimax polynomial (relative error
// 4.4e-9), above it 1 - 2 / (e^2|x| + 1).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Tanh(D d, V x) {
  const V magnitude = hn::Abs(x);
  const V square = hn::Mul(x, x);
  V p = hn::MulAdd(square, hn::Set(d, -0x1.75e1c4p-8f), hn::Set(d, 0x1.52269ap-6f));
  p = hn::MulAdd(square, p, hn::Set(d, -0x1.b83c5ap-5f));
  p = hn::MulAdd(square, p, hn::Set(d, 0x1.110726p-3f));
  p = hn::MulAdd(square, p, hn::Set(d, -0x1.555532p-2f));
  const V small = hn::MulAdd(hn::Mul(x, square), p, x);
  // e^(2|x|) = 2^(|x| * 2 log2 e). From 10 on, tanh is 1 to the last bit.
  const V exponent = hn::Mul(hn::Min(hn::Set(d, 10.0f), magnitude), hn::Set(d, 0x1.715476p+1f));
  const V e = Exp2(d, exponent);
  const V one = hn::Set(d, 1.0f);
  const V large = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(e, one)));
  return hn::IfThenElse(hn::Ge(magnitude, hn::Set(d, 0.625f)), hn::CopySign(large, x), small);
}

}  // namespace riffle::core::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
