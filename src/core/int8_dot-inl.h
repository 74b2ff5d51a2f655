// Dot products of int8. Included once per SIMD target.
#if defined(RIFFLE_CORE_INT8_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_CORE_INT8_DOT_INL_H_
#undef RIFFLE_CORE_INT8_DOT_INL_H_
#else
#define RIFFLE_CORE_INT8_DOT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace riffle::core::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sums of products of four int8. One operand of each product is packed beforehand, as value +
// kBias: the instruction of x86 takes an unsigned and a signed byte, that of ARM two signed ones.
// Callers start a sum at -kBias times the sum of the other operand. Sums are exact, the same on
// every target.
struct Int8Dot {
#if HWY_TARGET == HWY_NEON_BF16  // SDOT; Highway 1.2 has no function for it
  static constexpr bool kNative = true;
  static constexpr int32_t kBias = 0;
#else  // where it is not native, about a dozen instructions emulate it
  static constexpr bool kNative = HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL;
  static constexpr int32_t kBias = 128;
#endif
  static constexpr uint32_t kSignFlip =
      kBias == 0 ? 0 : 0x80808080u;  // packed lane = lane ^ kSignFlip

  template <class DI, class VI = hn::Vec<DI>>
  static HWY_INLINE VI Step(DI di, hn::Vec<hn::Repartition<uint8_t, DI>> packed,
                            hn::Vec<hn::Repartition<int8_t, DI>> other, VI sum) {
#if HWY_TARGET == HWY_NEON_BF16
    static_assert(hn::MaxLanes(di) == 4);
    return VI{
        vdotq_s32(sum.raw, hn::BitCast(hn::Repartition<int8_t, DI>(), packed).raw, other.raw)};
#else
    return hn::SumOfMulQuadAccumulate(di, packed, other, sum);
#endif
  }

  // The same for unsigned bytes; those in `b` are at most 127.
  template <class DI, class VI = hn::Vec<DI>, class VU8 = hn::Vec<hn::Repartition<uint8_t, DI>>>
  static HWY_INLINE VI StepUnsigned(DI di, VU8 a, VU8 b, VI sum) {
#if HWY_TARGET == HWY_NEON_BF16
    static_assert(hn::MaxLanes(di) == 4);
    const hn::RebindToUnsigned<DI> du;
    return hn::BitCast(di,
                       hn::Vec<decltype(du)>{vdotq_u32(hn::BitCast(du, sum).raw, a.raw, b.raw)});
#else
    return hn::SumOfMulQuadAccumulate(di, a, hn::BitCast(hn::Repartition<int8_t, DI>(), b), sum);
#endif
  }
};

// A target that multiplies matrices of int8 packs its operands for that.
#undef RIFFLE_INT8_MATRICES
#if HWY_TARGET == HWY_NEON_BF16
#define RIFFLE_INT8_MATRICES 1

// Adds to `sums` the products of two rows and two columns of eight int8: row 0 with columns 0 and
// 1, then row 1 with both. An operand's lower half is its first row or column. One SMMLA, which
// makes twice the products of an SDOT. Highway 1.2 has no function for it, and its target does not
// imply it: core/targets.cc leaves NEON_BF16 out where the processor lacks it.
HWY_INLINE hn::Vec128<int32_t> AddInt8Matrices(hn::Vec128<int32_t> sums, hn::Vec128<uint32_t> rows,
                                               hn::Vec128<uint32_t> columns) {
  asm(".arch_extension i8mm\n\tsmmla %0.4s, %1.16b, %2.16b"
      : "+w"(sums.raw)
      : "w"(rows.raw), "w"(columns.raw));
  return sums;
}

// Sums of two rows and four columns, from AddInt8Matrices with the first and the last two columns,
// as a vector for each row.
HWY_INLINE void SplitRows(hn::Vec128<int32_t> first, hn::Vec128<int32_t> last,
                          hn::Vec128<int32_t>& row0, hn::Vec128<int32_t>& row1) {
  const hn::Full128<int32_t> d;
  row0 = hn::ConcatLowerLower(d, last, first);
  row1 = hn::ConcatUpperUpper(d, last, first);
}
#else
#define RIFFLE_INT8_MATRICES 0
#endif

}  // namespace riffle::core::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
