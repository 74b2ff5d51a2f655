// Lists of a row's best logits so far. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_CANDIDATES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_CANDIDATES_INL_H_
#undef RIFFLE_LM_HEAD_CANDIDATES_INL_H_
#else
#define RIFFLE_LM_HEAD_CANDIDATES_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/order-inl.h"
#include "lm_head/linear_plan.h"
#include "select/bound-inl.h"
#include "select/compress-inl.h"
#include "select/limits.h"
#include "select/sort-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;
using core::HWY_NAMESPACE::Tag;
using select::HWY_NAMESPACE::Bound;
using select::HWY_NAMESPACE::Candidates;
using select::HWY_NAMESPACE::CountGe;
using select::HWY_NAMESPACE::FindBound;
using select::HWY_NAMESPACE::KeepGe;
using select::HWY_NAMESPACE::Pad;
using select::HWY_NAMESPACE::SortedIndices;

// The candidates are in ascending order of column. Room for select::kSlack more elements follows
// each array.
using Keys32 = Candidates<int32_t>;

// Keeps the candidates above `key`, and the first `ties` of those equal to it.
HWY_INLINE void KeepFirstTies(Keys32& list, int32_t key, size_t ties) {
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

// Prunes the list to between k and `limit` candidates, among them the k best; the order of columns
// stays. Returns a key that at least k of them reach.
HWY_INLINE int32_t Prune(Keys32& list, size_t k, size_t limit) {
  HWY_DASSERT(0 < k && k <= limit && limit < list.count);
  const Tag<int32_t> d;
  Pad(d, list.keys, list.count);
  const Bound<int32_t> bound =
      FindBound(list.keys, list.count, k, limit, core::kF32Format.lowest_key(), core::kF32Format);
  if (bound.reached <= limit) {
    KeepGe(list, bound.key);
  } else {  // too many ties at the bound; fewer than k candidates are above it
    const size_t above = CountGe(list.keys, list.count, bound.key + 1);
    KeepFirstTies(list, bound.key, k - above);
  }
  HWY_DASSERT(k <= list.count && list.count <= limit);
  return bound.key;
}

// Appends the logits of columns [column, column + count) whose key is at least `bound`.
HWY_INLINE void AppendTile(const float* logits, int column, int count, int32_t bound,
                           Keys32& list) {
  HWY_DASSERT(0 <= count && count <= kTile);
  const Tag<int32_t> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto limit = hn::Set(d, bound);
  for (int i = 0; i < count; i += lanes) {
    const auto bits = hn::BitCast(d, hn::Load(hn::Rebind<float, decltype(d)>(), logits + i));
    const auto keys = Keys(d, bits, core::kF32Format);
    auto reach = hn::Ge(keys, limit);
    if (i + lanes > count) {
      reach = hn::And(reach, hn::FirstN(d, static_cast<size_t>(count - i)));
    }
    if (!hn::AllFalse(d, reach)) {
      list.Append(d, keys, reach, column + i);
    }
  }
}

// Sorts a list and writes its `best` best candidates to `values` and `indices`, of any alignment.
inline void WriteBest(Keys32& list, int64_t best, const SortScratch& layout, uint8_t* scratch,
                      float* values, int32_t* indices) {
  const auto k = static_cast<size_t>(best);
  HWY_DASSERT(0 < k && k <= list.count && list.count <= static_cast<size_t>(layout.capacity));
  const size_t limit = select::SortLimit(k, /*sorted=*/true);
  if (list.count > limit) {
    Prune(list, k, limit);
  }
  // Sort positions in the list; keys and columns are gathered through them.
  int32_t* positions = layout.positions.At(scratch);
  for (size_t i = 0; i < list.count; ++i) {
    positions[i] = static_cast<int32_t>(i);
  }
  Keys32 to_sort{list.keys, positions, list.count};
  int32_t ranked[select::kRankLimit];
  const int32_t* sorted = SortedIndices(to_sort, ranked, layout.pairs.At(scratch));
  for (size_t i = 0; i < k; ++i) {  // logits are canonical, so their keys determine their bits
    const int32_t key = list.keys[sorted[i]];
    const uint32_t bits = key == core::kF32Format.nan_key()
                              ? kCanonicalNaN
                              : std::bit_cast<uint32_t>(core::KeyToFloat(key, DType::kF32));
    std::memcpy(values + i, &bits, sizeof(bits));
    std::memcpy(indices + i, list.indices + sorted[i], sizeof(*indices));
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
