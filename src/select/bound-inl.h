// A bound by counting: a key that at least k keys of an array reach, and not many more. Included
// once per SIMD target.
#if defined(RIFFLE_SELECT_BOUND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SELECT_BOUND_INL_H_
#undef RIFFLE_SELECT_BOUND_INL_H_
#else
#define RIFFLE_SELECT_BOUND_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "core/order-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::select::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;

// Arrays of keys are padded: Pad fills the room for one vector after them with the lowest integer.
template <class D, typename TI = hn::TFromD<D>>
HWY_INLINE void Pad(D d, TI* keys, size_t count) {
  hn::StoreU(hn::Set(d, hwy::LimitsMin<TI>()), d, keys + count);
}

template <typename TI>
bool IsPadded(const TI* keys, size_t count) {
  return std::all_of(keys + count, keys + count + hn::Lanes(Tag<TI>()),
                     [](TI key) { return key == hwy::LimitsMin<TI>(); });
}

HWY_INLINE size_t SumLanes(Tag<int16_t> d, hn::Vec<Tag<int16_t>> v) {
  const hn::RepartitionToWide<Tag<int16_t>> wide;
  return static_cast<size_t>(
      hn::ReduceSum(wide, hn::WidenMulPairwiseAdd(wide, v, hn::Set(d, int16_t{1}))));
}
template <class D>
HWY_INLINE size_t SumLanes(D d, hn::Vec<D> v) {
  return static_cast<size_t>(hn::ReduceSum(d, v));
}

// How many of keys[0, count) are >= bound. The keys are padded.
template <typename TI>
size_t CountGe(const TI* keys, size_t count, TI bound) {
  HWY_DASSERT(IsPadded(keys, count));
  if (bound == hwy::LimitsMin<TI>()) {  // only integers have this key; the padding has it too
    return count;
  }
  const Tag<TI> d;
  const size_t lanes = hn::Lanes(d);
  const auto limit = hn::Set(d, bound);
  size_t total = 0;
  for (size_t i = 0; i < count;) {
    const size_t end = std::min(count, i + 16384 * lanes);  // so that i16 lanes do not overflow
    auto sum0 = hn::Zero(d);
    auto sum1 = sum0;
    for (; i + lanes < end; i += 2 * lanes) {
      sum0 = hn::Sub(sum0, hn::VecFromMask(d, hn::Ge(hn::LoadU(d, keys + i), limit)));
      sum1 = hn::Sub(sum1, hn::VecFromMask(d, hn::Ge(hn::LoadU(d, keys + i + lanes), limit)));
    }
    if (i < end) {
      sum0 = hn::Sub(sum0, hn::VecFromMask(d, hn::Ge(hn::LoadU(d, keys + i), limit)));
      i += lanes;
    }
    total += SumLanes(d, hn::Add(sum0, sum1));
  }
  return total;
}

// The largest of keys[0, count). The keys are padded.
template <typename TI>
TI MaxKey(const TI* keys, size_t count) {
  HWY_DASSERT(count > 0 && IsPadded(keys, count));
  const Tag<TI> d;
  auto max = hn::LoadU(d, keys);
  for (size_t i = hn::Lanes(d); i < count; i += hn::Lanes(d)) {
    max = hn::Max(max, hn::LoadU(d, keys + i));
  }
  return hn::ReduceMax(d, max);
}

// The difference between the largest and the smallest of keys[0, count).
template <typename TI>
hwy::MakeUnsigned<TI> KeyRange(const TI* keys, size_t count, TI max) {
  HWY_DASSERT(count > 0);
  const Tag<TI> d;
  const size_t lanes = hn::Lanes(d);
  auto least = hn::Set(d, max);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    least = hn::Min(least, hn::LoadU(d, keys + i));
  }
  TI min = hn::ReduceMin(d, least);
  for (; i < count; ++i) {
    min = std::min(min, keys[i]);
  }
  using TU = hwy::MakeUnsigned<TI>;
  return static_cast<TU>(static_cast<TU>(max) - static_cast<TU>(min));
}

// Holds differences of keys, and one more than the largest key.
__extension__ using Int128 = __int128;
template <typename TI>
using WideInt = std::conditional_t<sizeof(TI) == 8, Int128, int64_t>;

// The first step of FindBound below the largest key: for floating-point values an eighth of an
// octave, for integers a sixteenth of their range.
template <typename TI, class F>
WideInt<TI> FirstStep(const TI* keys, size_t count, TI max, F format) {
  if constexpr (F::kInteger) {
    return WideInt<TI>{KeyRange(keys, count, max)} / 16 + 1;
  } else if constexpr (sizeof(TI) == 8) {
    return WideInt<TI>{1} << 49;
  } else if constexpr (sizeof(TI) == 4) {
    return WideInt<TI>{1} << 20;
  } else {
    return format.inf == core::kBF16Format.inf ? 16 : 128;
  }
}

// log2 of a positive count, to within a tenth, plus 127, which cancels in differences: the biased
// exponent of its f32, and the mantissa as a linear fraction.
HWY_INLINE double RoughBiasedLog2(size_t count) {
  return static_cast<double>(std::bit_cast<int32_t>(static_cast<float>(count))) * 0x1p-23;
}

template <typename TI>
struct Bound {
  TI key;
  size_t num_reaching;  // how many keys are >= key; 0: fewer than k reach the floor
};

// A key not below `floor` that at least k and at most `limit` of keys[0, count) reach; where ties
// forbid that, the k-th largest key itself, which fewer than k keys exceed. The keys are padded.
// Each step counts the keys that reach a guess, without a branch on the data. The first guesses
// gallop down from the largest key. Later ones interpolate between the counts on both sides: the
// tail of a row falls off about exponentially, so two or three steps suffice where bisection takes
// eight. Every other step bisects all the same, so that no row is slow.
template <typename TI, class F>
Bound<TI> FindBound(const TI* keys, size_t count, size_t k, size_t limit, TI floor, F format) {
  HWY_DASSERT(count > 0 && 0 < k && k <= limit && IsPadded(keys, count));
  HWY_DASSERT(!F::kInteger || k <= count);  // the lowest integer would count the padding
  using Wide = WideInt<TI>;
  const TI largest = std::min(MaxKey(keys, count), format.top_key());
  const Wide max = largest;
  Wide step = FirstStep(keys, count, largest, format);
  Wide low = max + 1;
  Wide high = low;
  size_t reached = 0;       // keys that reach `low`
  size_t reached_high = 0;  // keys that reach `high`: fewer than k
  while (reached < k) {
    if (low <= floor) {
      return {floor, 0};
    }
    high = low;
    reached_high = reached;
    low = std::max<Wide>(floor, low - step);
    reached = CountGe(keys, count, static_cast<TI>(low));
    step *= 4;
  }
  const double target_log2 = RoughBiasedLog2((k + limit) / 2);
  for (bool bisect = false; reached > limit && high - low > 1; bisect = !bisect) {
    double fraction = 0.5;
    if (!bisect) {
      const double above = RoughBiasedLog2(reached);
      fraction = (above - target_log2) /
                 (above - RoughBiasedLog2(std::max<size_t>(reached_high, 1)) + 0.01);
    }
    const Wide guess = low + static_cast<Wide>(static_cast<double>(high - low) * fraction);
    const Wide middle = std::clamp<Wide>(guess, low + 1, high - 1);
    const size_t at_middle = CountGe(keys, count, static_cast<TI>(middle));
    if (at_middle >= k) {
      low = middle;
      reached = at_middle;
    } else {
      high = middle;
      reached_high = at_middle;
    }
  }
  return {static_cast<TI>(low), reached};
}

}  // namespace riffle::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
