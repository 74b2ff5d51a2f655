// Sorting a few candidates, by rank or by radix. Included once per SIMD target.
#if defined(RIFFLE_SELECT_SORT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SELECT_SORT_INL_H_
#undef RIFFLE_SELECT_SORT_INL_H_
#else
#define RIFFLE_SELECT_SORT_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "select/bound-inl.h"
#include "select/compress-inl.h"
#include "select/limits.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::select::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;

// ranks[i] = how many keys exceed keys[i], for kVectors vectors of i.
template <size_t kVectors, typename TI>
HWY_INLINE void RankTile(const TI* all, size_t count, const TI* keys, TI* ranks) {
  const Tag<TI> d;
  using V = hn::Vec<Tag<TI>>;
  const size_t lanes = hn::Lanes(d);
  const auto load = [&](size_t v) HWY_ATTR {
    return v < kVectors ? hn::LoadU(d, keys + v * lanes) : hn::Zero(d);
  };
  const V mine0 = load(0);
  const V mine1 = load(1);
  const V mine2 = load(2);
  const V mine3 = load(3);
  V rank0 = hn::Zero(d);
  V rank1 = rank0;
  V rank2 = rank0;
  V rank3 = rank0;
  for (size_t j = 0; j < count; ++j) {
    const V other = hn::Set(d, all[j]);
    rank0 = hn::Sub(rank0, hn::VecFromMask(d, hn::Gt(other, mine0)));
    if constexpr (kVectors > 1) {
      rank1 = hn::Sub(rank1, hn::VecFromMask(d, hn::Gt(other, mine1)));
    }
    if constexpr (kVectors > 2) {
      rank2 = hn::Sub(rank2, hn::VecFromMask(d, hn::Gt(other, mine2)));
      rank3 = hn::Sub(rank3, hn::VecFromMask(d, hn::Gt(other, mine3)));
    }
  }
  const V rank[] = {rank0, rank1, rank2, rank3};
  for (size_t v = 0; v < kVectors; ++v) {
    hn::StoreU(rank[v], d, ranks + v * lanes);
  }
}

// order[r] = index of the candidate of rank r. Compares every pair without a branch, which was the
// fastest way for up to kRankLimit candidates (docs/lab/top-k.md). Skipping candidates that are not
// among the k best would take a branch, mispredicted for every other candidate. Candidates with
// equal keys have the same rank r and take the places r, r + 1, ... in the order of their indices.
template <typename TI>
void RankSort(const Candidates<TI>& candidates, int32_t* order) {
  const size_t lanes = hn::Lanes(Tag<TI>());
  const size_t count = candidates.count;
  const TI* keys = candidates.keys;
  HWY_DASSERT(count <= kRankLimit && IsPadded(keys, count));
  TI ranks[kRankLimit + 4 * hn::MaxLanes(Tag<TI>())];
  for (size_t i = 0; i < count;) {
    const size_t left = count - i;
    if (left > 2 * lanes) {  // may load one vector past the padding; its ranks are unused
      RankTile<4>(keys, count, keys + i, ranks + i);
      i += 4 * lanes;
    } else if (left > lanes) {
      RankTile<2>(keys, count, keys + i, ranks + i);
      i += 2 * lanes;
    } else {
      RankTile<1>(keys, count, keys + i, ranks + i);
      i += lanes;
    }
  }
  uint8_t taken[kRankLimit] = {};
  for (size_t i = 0; i < count; ++i) {
    const auto rank = static_cast<size_t>(ranks[i]);
    order[rank + taken[rank]++] = candidates.indices[i];
  }
}

// What RadixSort moves: how far a key is below the largest one, and the key's index.
struct WidePair {
  uint64_t distance;
  uint64_t index;
};
HWY_INLINE uint64_t Distance(uint64_t pair, int shift) { return pair >> (32 + shift); }
HWY_INLINE uint64_t Distance(const WidePair& pair, int shift) { return pair.distance >> shift; }
HWY_INLINE int32_t Index(uint64_t pair) { return static_cast<int32_t>(pair & 0xffffffffu); }
HWY_INLINE int32_t Index(const WidePair& pair) { return static_cast<int32_t>(pair.index); }

// Sorts candidates.indices by descending key; equal keys keep their order, which is that of their
// indices. The digits are those of the distance from the largest key, least significant first. Near
// the top of a row distances have few bits, which are divided evenly among as few passes as
// possible. `memory` has room for 2 * count pairs.
template <typename TI>
void RadixSort(Candidates<TI>& candidates, uint64_t* memory) {
  using Pair = std::conditional_t<sizeof(TI) == 8, WidePair, uint64_t>;
  constexpr int kMaxDigit = 11;
  const size_t count = candidates.count;
  HWY_DASSERT(count > 0);
  const auto max =
      static_cast<uint64_t>(int64_t{*std::max_element(candidates.keys, candidates.keys + count)});
  const auto min =
      static_cast<uint64_t>(int64_t{*std::min_element(candidates.keys, candidates.keys + count)});
  Pair* from = reinterpret_cast<Pair*>(memory);
  Pair* to = from + count;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t distance = max - static_cast<uint64_t>(int64_t{candidates.keys[i]});
    const auto index = static_cast<uint32_t>(candidates.indices[i]);
    if constexpr (sizeof(TI) == 8) {
      from[i] = {distance, index};
    } else {
      from[i] = distance << 32 | index;
    }
  }
  const auto bits = static_cast<int>(std::bit_width(max - min));
  const int max_digit = std::clamp(static_cast<int>(std::bit_width(count)) - 2, 4, kMaxDigit);
  const int passes = (bits + max_digit - 1) / max_digit;
  const int digit = passes == 0 ? 0 : (bits + passes - 1) / passes;
  const uint64_t mask = (uint64_t{1} << digit) - 1;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * digit;
    uint32_t start[size_t{1} << kMaxDigit];
    std::fill_n(start, mask + 1, 0);
    for (size_t i = 0; i < count; ++i) {
      ++start[Distance(from[i], shift) & mask];
    }
    uint32_t sum = 0;
    for (size_t value = 0; value <= mask; ++value) {
      const uint32_t here = start[value];
      start[value] = sum;
      sum += here;
    }
    for (size_t i = 0; i < count; ++i) {
      to[start[Distance(from[i], shift) & mask]++] = from[i];
    }
    std::swap(from, to);
  }
  for (size_t i = 0; i < count; ++i) {
    candidates.indices[i] = Index(from[i]);
  }
}

// The candidates' indices sorted by descending key; equal keys keep their order. Returns `ranked`,
// which has room for kRankLimit, or candidates.indices, sorted in place; `pairs` is the `memory` of
// RadixSort.
template <typename TI>
HWY_INLINE const int32_t* SortedIndices(Candidates<TI>& candidates, int32_t* ranked,
                                        uint64_t* pairs) {
  if (candidates.count > kRankLimit) {
    RadixSort(candidates, pairs);
    return candidates.indices;
  }
  Pad(Tag<TI>(), candidates.keys, candidates.count);
  RankSort(candidates, ranked);
  return ranked;
}

}  // namespace riffle::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
