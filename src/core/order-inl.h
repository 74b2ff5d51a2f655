// The order of order.h on vectors. Included once per SIMD target.
#if defined(RIFFLE_CORE_ORDER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_CORE_ORDER_INL_H_
#undef RIFFLE_CORE_ORDER_INL_H_
#else
#define RIFFLE_CORE_ORDER_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "core/order.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::core::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Whole vectors of at most 64 bytes; of 16 bytes where the length is unknown at compile time.
#if HWY_HAVE_SCALABLE
template <typename T>
using Tag = hn::FixedTag<T, 16 / sizeof(T)>;
#else
template <typename T>
using Tag = hn::CappedTag<T, 64 / sizeof(T)>;
#endif

// Loads from[0, count), count <= Lanes(d), followed by zeros. Reads nothing else, and takes any
// alignment, unlike LoadN on targets without masked loads.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> LoadPart(D d, const T* from, size_t count) {
#if (HWY_TARGET <= HWY_AVX3 && !HWY_MEM_OPS_MIGHT_FAULT) || HWY_HAVE_SCALABLE
  return hn::LoadN(d, from, count);
#else
  HWY_ALIGN T part[hn::MaxLanes(d)] = {};
  std::memcpy(part, reinterpret_cast<const uint8_t*>(from), count * sizeof(T));
  return hn::Load(d, part);
#endif
}

template <class D, class V = hn::Vec<D>, typename TI = hn::TFromD<D>>
HWY_INLINE V Keys(D d, V bits, Format<TI> format) {
  const V sign = hn::BroadcastSignBit(hn::Xor(bits, hn::Set(d, format.flip())));
  const V magnitude = hn::And(bits, hn::Set(d, hwy::LimitsMax<TI>()));
  const V key = hn::Sub(hn::Xor(magnitude, sign), sign);
  return hn::IfThenElse(hn::Gt(magnitude, hn::Set(d, format.inf)), hn::Set(d, format.nan_key()),
                        key);
}

// Elements as keys of the same width.
template <class D, class V = hn::Vec<D>, typename TElement = hn::TFromD<D>, typename TKey>
HWY_INLINE V Keys(D d, V bits, IntegerFormat<TElement, TKey> format) {
  return hn::Xor(bits, hn::Set(d, format.flip));
}

// Keys of elements that may be narrower. LoadKeysPart loads `count` of them; the other keys are
// meaningless.
template <class D, class F>
HWY_INLINE hn::Vec<D> WidenedKeys(D d, hn::Vec<hn::Rebind<typename F::Element, D>> bits, F format) {
  const hn::Rebind<typename F::Element, D> elements;
  if constexpr (sizeof(typename F::Element) == sizeof(typename F::Key)) {
    return Keys(d, bits, format);
  } else {
    return hn::PromoteTo(d, Keys(elements, bits, format));
  }
}
template <class D, class F>
HWY_INLINE hn::Vec<D> LoadKeys(D d, const typename F::Element* from, F format) {
  const hn::Rebind<typename F::Element, D> elements;
  return WidenedKeys(d, hn::LoadU(elements, from), format);
}
template <class D, class F>
HWY_INLINE hn::Vec<D> LoadKeysPart(D d, const typename F::Element* from, size_t count, F format) {
  const hn::Rebind<typename F::Element, D> elements;
  return WidenedKeys(d, LoadPart(elements, from, count), format);
}

}  // namespace riffle::core::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
