// Sorts the list of a row's best logits into its answer. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_CANDIDATES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_CANDIDATES_INL_H_
#undef RIFFLE_LM_HEAD_CANDIDATES_INL_H_
#else
#define RIFFLE_LM_HEAD_CANDIDATES_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/order.h"
#include "lm_head/linear_plan.h"
#include "select/float_candidates-inl.h"
#include "select/limits.h"
#include "select/sort-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
using select::HWY_NAMESPACE::AppendReaching;
using select::HWY_NAMESPACE::FloatCandidates;
using select::HWY_NAMESPACE::Prune;
using select::HWY_NAMESPACE::SortedIndices;

// Sorts a list and writes its `best` best candidates to `values` and `indices`, of any alignment.
inline void WriteBest(FloatCandidates& list, int64_t best, const SortScratch& layout,
                      uint8_t* scratch, float* values, int32_t* indices) {
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
  FloatCandidates to_sort{list.keys, positions, list.count};
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
