// Lists of the best floats so far: logits of a row, scores of a query. Included once per SIMD
// target.
#if defined(RIFFLE_SELECT_FLOAT_CANDIDATES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SELECT_FLOAT_CANDIDATES_INL_H_
#undef RIFFLE_SELECT_FLOAT_CANDIDATES_INL_H_
#else
#define RIFFLE_SELECT_FLOAT_CANDIDATES_INL_H_
#endif

#include "core/order-inl.h"
#include "select/bound-inl.h"
#include "select/compress-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::select::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;

// The keys of floats and the floats' indices, in ascending order of index. Room for kSlack more
// elements follows each array.
using FloatCandidates = Candidates<int32_t>;

// Keeps the candidates above `key`, and the first `ties` of those equal to it.
HWY_INLINE void KeepFirstTies(FloatCandidates& list, int32_t key, size_t ties) {
  size_t kept = 0;
  for (size_t i = 0; i < list.count; ++i) {
    const int32_t at = list.keys[i];
    if (at > key || (at == key && ties > 0)) {
      ties -= at == key ? 1 : 0;
      list.keys[kept] = at;
      list.indices[kept++] = list.indices[i];
    }
  }
  list.count = kept;
}

// Prunes the list to between k and `limit` candidates, the k best among them, still in ascending
// order of index. Returns a key that at least k of them reach.
HWY_INLINE int32_t Prune(FloatCandidates& list, size_t k, size_t limit) {
  HWY_DASSERT(0 < k && k <= limit && limit < list.count);
  Pad(Tag<int32_t>(), list.keys, list.count);
  const Bound<int32_t> bound =
      FindBound(list.keys, list.count, k, limit, core::kF32Format.lowest_key(), core::kF32Format);
  if (bound.num_reaching <= limit) {
    KeepGe(list, bound.key);
  } else {  // too many ties at the bound; fewer than k candidates are above it
    KeepFirstTies(list, bound.key, k - CountGe(list.keys, list.count, bound.key + 1));
  }
  HWY_DASSERT(k <= list.count && list.count <= limit);
  return bound.key;
}

// Appends the values[i], i < count, whose key is at least `bound`, with the index `first` + i.
HWY_INLINE void AppendReaching(const float* values, int count, int32_t first, int32_t bound,
                               FloatCandidates& list) {
  HWY_DASSERT(0 <= count);
  const Tag<int32_t> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto limit = hn::Set(d, bound);
  for (int i = 0; i < count; i += lanes) {
    const auto bits = hn::BitCast(d, hn::LoadU(hn::Rebind<float, decltype(d)>(), values + i));
    const auto keys = Keys(d, bits, core::kF32Format);
    auto reach = hn::Ge(keys, limit);
    if (i + lanes > count) {
      reach = hn::And(reach, hn::FirstN(d, static_cast<size_t>(count - i)));
    }
    if (!hn::AllFalse(d, reach)) {
      list.Append(d, keys, reach, first + i);
    }
  }
}

}  // namespace riffle::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
