// order.h on vectors. Included once per SIMD target.
#if defined(RIFFLE_CORE_ORDER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_CORE_ORDER_INL_H_
#undef RIFFLE_CORE_ORDER_INL_H_
#else
#define RIFFLE_CORE_ORDER_INL_H_
#endif

#include <hwy/highway.h>

#include "core/order.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Whole vectors of at most 64 bytes; 16 where the length is not known when compiling.
#if HWY_HAVE_SCALABLE
template <typename T>
using Tag = hn::FixedTag<T, 16 / sizeof(T)>;
#else
template <typename T>
using Tag = hn::CappedTag<T, 64 / sizeof(T)>;
#endif

template <class D, class V = hn::Vec<D>, typename TI = hn::TFromD<D>>
HWY_INLINE V Keys(D d, V bits, Format<TI> format) {
  const V sign = hn::BroadcastSignBit(bits);
  const V magnitude = hn::And(bits, hn::Set(d, hwy::LimitsMax<TI>()));
  const V key = hn::Sub(hn::Xor(magnitude, sign), sign);
  return hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, format.inf)), hn::Set(d, format.nan_key()),
                        key);
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
