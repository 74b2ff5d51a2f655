// The arithmetic of dot products over packed operands, and prefetching. Included once per SIMD
// target.
#if defined(RIFFLE_CORE_DOT_OPERANDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_CORE_DOT_OPERANDS_INL_H_
#undef RIFFLE_CORE_DOT_OPERANDS_INL_H_
#else
#define RIFFLE_CORE_DOT_OPERANDS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "core/bf16_dot.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::core::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_HAVE_SCALABLE
#error "Kernels hold vectors in arrays: leave scalable targets out of HWY_TARGETS"
#endif

// Whether there are 32 vector registers, not 16.
constexpr bool kHas32Vectors = HWY_CAP_GE512 || HWY_ARCH_ARM_A64;

// An operand is one f32; a step is one fused multiply-add (two roundings on SSE).
struct F32Fma {
  using Operand = float;
  static constexpr int kPerOperand = 1;

  template <class DF, class VF = hn::Vec<DF>>
  static HWY_INLINE VF Step(DF df, Operand a, VF b, VF sum) {
    return hn::MulAdd(hn::Set(df, a), b, sum);
  }
};

#if RIFFLE_BF16_DOT
// An operand is a pair of bf16, neighbours along the inner index, the first in the low half; a step
// adds both products: VDPBF16PS rounds twice to nearest, ARM's BFDOT twice to odd; both treat
// denormals as zeros.
struct BF16PairDot {
  using Operand = uint32_t;
  static constexpr int kPerOperand = 2;

  template <class DF, class VW, class VF = hn::Vec<DF>>
  static HWY_INLINE VF Step(DF df, Operand a, VW b, VF sum) {
    const hn::RebindToUnsigned<DF> du;
    const hn::Repartition<hwy::bfloat16_t, DF> dbf;
    VF unused = hn::Zero(df);
    return hn::ReorderWidenMulAccumulate(df, hn::BitCast(dbf, hn::Set(du, a)), hn::BitCast(dbf, b),
                                         sum, unused);
  }
};
#endif

// Prefetches into L2. Prefetching any address is harmless; integer arithmetic avoids out-of-bounds
// pointer UB.
HWY_INLINE void PrefetchAt(const uint8_t* from, int64_t offset) {
  const auto at = reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(offset);
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2);
}

}  // namespace riffle::core::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
