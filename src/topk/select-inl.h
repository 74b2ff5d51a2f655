// Building blocks of the finish: a bound by counting, compress, and the sort of what is left.
#if defined(RIFFLE_TOPK_SELECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_SELECT_INL_H_
#undef RIFFLE_TOPK_SELECT_INL_H_
#else
#define RIFFLE_TOPK_SELECT_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "core/order-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Arrays that are handed to CountGe are followed by room for one vector, which Pad fills with what
// no bound counts.
template <class D, typename TI = hn::TFromD<D>>
HWY_INLINE void Pad(D d, TI* keys, size_t count) {
  hn::StoreU(hn::Set(d, hwy::LimitsMin<TI>()), d, keys + count);
}

HWY_INLINE size_t SumLanes(Tag<int16_t> d, hn::Vec<Tag<int16_t>> v) {
  const hn::RepartitionToWide<Tag<int16_t>> wide;
  return static_cast<size_t>(
      hn::ReduceSum(wide, hn::WidenMulPairwiseAdd(wide, v, hn::Set(d, int16_t{1}))));
}
HWY_INLINE size_t SumLanes(Tag<int32_t> d, hn::Vec<Tag<int32_t>> v) {
  return static_cast<size_t>(hn::ReduceSum(d, v));
}

// How many of keys[0, count) are >= bound. Pre: padded; bound > LimitsMin.
template <typename TI>
size_t CountGe(const TI* keys, size_t count, TI bound) {
  const Tag<TI> d;
  const size_t lanes = hn::Lanes(d);
  const auto limit = hn::Set(d, bound);
  size_t total = 0;
  for (size_t i = 0; i < count;) {
    const size_t end = std::min(count, i + 16384 * lanes);  // lanes of i16 do not overflow
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

// The largest of keys[0, count). Pre: padded, count > 0.
template <typename TI>
TI MaxKey(const TI* keys, size_t count) {
  const Tag<TI> d;
  auto max = hn::LoadU(d, keys);
  for (size_t i = hn::Lanes(d); i < count; i += hn::Lanes(d)) {
    max = hn::Max(max, hn::LoadU(d, keys + i));
  }
  return hn::ReduceMax(d, max);
}

template <typename TI>
struct Bound {
  TI key;        // at least k keys are >= key; fewer than k are > key if count > limit
  size_t count;  // how many are >= key; 0: fewer than k keys are >= the floor
};

// A key that at least k and, unless ties forbid it, at most `limit` of keys[0, count) reach, not
// below `floor`. Gallops down from the largest key in steps that start at an eighth of an octave,
// then bisects; each step counts the keys once, without a branch on the data.
template <typename TI>
Bound<TI> FindBound(const TI* keys, size_t count, size_t k, size_t limit, TI floor,
                    Format<TI> format) {
  using Wide = int64_t;
  Wide high = std::min<Wide>(MaxKey(keys, count), format.nan_key()) + 1;  // reached by fewer than k
  Wide step = sizeof(TI) == 4 ? Wide{1} << 20 : (format.inf == kBF16Format.inf ? 16 : 128);
  Wide low = high;
  size_t reached = 0;
  while (reached < k) {
    if (low <= floor) {
      return {floor, 0};
    }
    high = low;
    low = std::max<Wide>(floor, low - step);
    step *= 4;
    reached = CountGe(keys, count, static_cast<TI>(low));
  }
  while (reached > limit && high - low > 1) {
    const Wide middle = low + (high - low) / 2;
    const size_t at_middle = CountGe(keys, count, static_cast<TI>(middle));
    if (at_middle >= k) {
      low = middle;
      reached = at_middle;
    } else {
      high = middle;
    }
  }
  return {static_cast<TI>(low), reached};
}

// Stores base + i for each lane i that is set, in order, and returns how many. Writes whole vectors:
// `out` has room for Lanes(d) elements.
template <class D, typename TI = hn::TFromD<D>>
HWY_INLINE size_t CompressIndices(D d, hn::Mask<D> mask, int32_t base, int32_t* out) {
  const auto lanes = hn::Compress(hn::Iota(d, 0), mask);
  if constexpr (sizeof(TI) == 4) {
    hn::StoreU(hn::Add(lanes, hn::Set(d, base)), d, out);
  } else {
    const hn::Repartition<int32_t, D> wide;
    const auto offset = hn::Set(wide, base);
    hn::StoreU(hn::Add(hn::PromoteLowerTo(wide, lanes), offset), wide, out);
    hn::StoreU(hn::Add(hn::PromoteUpperTo(wide, lanes), offset), wide, out + hn::Lanes(wide));
  }
  return hn::CountTrue(d, mask);
}

// Candidates in ascending order of index; both arrays are followed by room for one vector.
template <typename TI>
struct Candidates {
  TI* keys;
  int32_t* indices;
  size_t count;

  template <class D>
  HWY_INLINE void Append(D d, hn::Vec<D> vector, hn::Mask<D> mask, int32_t base) {
    hn::StoreU(hn::Compress(vector, mask), d, keys + count);
    count += CompressIndices(d, mask, base, indices + count);
  }
};

// Keeps the candidates whose key is >= bound. Pre: padded.
template <typename TI>
void KeepGe(Candidates<TI>& candidates, TI bound) {
  const Tag<TI> d;
  const hn::Repartition<int32_t, Tag<TI>> di;
  const size_t count = candidates.count;
  const auto limit = hn::Set(d, bound);
  size_t kept = 0;
  for (size_t i = 0; i < count; i += hn::Lanes(d)) {
    const auto keys = hn::LoadU(d, candidates.keys + i);
    const auto mask = hn::Ge(keys, limit);
    hn::StoreU(hn::Compress(keys, mask), d, candidates.keys + kept);
    int32_t* out = candidates.indices + kept;
    if constexpr (sizeof(TI) == 4) {
      hn::StoreU(hn::Compress(hn::LoadU(di, candidates.indices + i), mask), di, out);
      kept += hn::CountTrue(d, mask);
    } else {
      const hn::Half<Tag<TI>> half;
      const auto low = hn::PromoteMaskTo(di, half, hn::LowerHalfOfMask(half, mask));
      const auto high = hn::PromoteMaskTo(di, half, hn::UpperHalfOfMask(half, mask));
      const auto second = hn::LoadU(di, candidates.indices + i + hn::Lanes(di));
      hn::StoreU(hn::Compress(hn::LoadU(di, candidates.indices + i), low), di, out);
      const size_t in_low = hn::CountTrue(di, low);
      hn::StoreU(hn::Compress(second, high), di, out + in_low);
      kept += in_low + hn::CountTrue(di, high);
    }
  }
  candidates.count = kept;
}

// The first `wanted` indices of candidates whose key is `key`, appended to out; returns how many.
template <typename TI>
size_t TakeEqual(const Candidates<TI>& candidates, TI key, size_t wanted, int32_t* out) {
  size_t taken = 0;
  for (size_t i = 0; i < candidates.count && taken < wanted; ++i) {
    out[taken] = candidates.indices[i];
    taken += candidates.keys[i] == key ? 1 : 0;
  }
  return taken;
}

// order[r] = position of the candidate of rank r, for r < k. Every pair is compared, without a
// branch: below kRankLimit candidates nothing is faster.
template <typename TI>
void RankSort(const Candidates<TI>& candidates, size_t k, int32_t* order) {
  const Tag<TI> d;
  const size_t lanes = hn::Lanes(d);
  const size_t count = candidates.count;
  const TI* keys = candidates.keys;
  HWY_ALIGN TI ranks[hn::MaxLanes(d)];
  for (size_t i = 0; i < count; i += lanes) {
    const auto mine = hn::LoadU(d, keys + i);
    auto rank = hn::Zero(d);
    size_t j = 0;
    for (; j < i; ++j) {  // earlier: wins when equal
      rank = hn::Sub(rank, hn::VecFromMask(d, hn::Ge(hn::Set(d, keys[j]), mine)));
    }
    for (; j < std::min(i + lanes, count); ++j) {
      const auto other = hn::Set(d, keys[j]);
      const auto later = hn::Gt(hn::Iota(d, 0), hn::Set(d, static_cast<TI>(j - i)));
      const auto wins = hn::Or(hn::Gt(other, mine), hn::And(hn::Eq(other, mine), later));
      rank = hn::Sub(rank, hn::VecFromMask(d, wins));
    }
    for (; j < count; ++j) {
      rank = hn::Sub(rank, hn::VecFromMask(d, hn::Gt(hn::Set(d, keys[j]), mine)));
    }
    hn::Store(rank, d, ranks);
    for (size_t lane = 0; lane < std::min(lanes, count - i); ++lane) {
      const size_t r = static_cast<size_t>(ranks[lane]);
      if (r < k) {
        order[r] = candidates.indices[i + lane];
      }
    }
  }
}
constexpr size_t kRankLimit = 256;

// Indices by descending key, then ascending index, into candidates.indices. Least significant digit
// first over the distance from the largest key, which for the top of a row takes fewer passes than
// the key has bytes. `pairs` has room for 2 * count.
template <typename TI>
void RadixSort(Candidates<TI>& candidates, uint64_t* pairs) {
  const size_t count = candidates.count;
  const int64_t max = *std::max_element(candidates.keys, candidates.keys + count);
  const int64_t min = *std::min_element(candidates.keys, candidates.keys + count);
  uint64_t* from = pairs;
  uint64_t* to = pairs + count;
  for (size_t i = 0; i < count; ++i) {
    const auto distance = static_cast<uint64_t>(max - candidates.keys[i]);
    from[i] = distance << 32 | static_cast<uint32_t>(candidates.indices[i]);
  }
  for (int shift = 32; shift < 64 && (static_cast<uint64_t>(max - min) << 32) >> shift != 0;
       shift += 8) {
    size_t start[256] = {};
    for (size_t i = 0; i < count; ++i) {
      ++start[from[i] >> shift & 255];
    }
    size_t sum = 0;
    for (size_t& bucket : start) {
      const size_t size = bucket;
      bucket = sum;
      sum += size;
    }
    for (size_t i = 0; i < count; ++i) {
      to[start[from[i] >> shift & 255]++] = from[i];
    }
    std::swap(from, to);
  }
  for (size_t i = 0; i < count; ++i) {
    candidates.indices[i] = static_cast<int32_t>(from[i] & 0xffffffffu);
  }
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
