// Building blocks of the finish: a bound by counting, compress, and the sort of what is left.
#if defined(RIFFLE_TOPK_SELECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_SELECT_INL_H_
#undef RIFFLE_TOPK_SELECT_INL_H_
#else
#define RIFFLE_TOPK_SELECT_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/order-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;

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

// log2 of a positive count, to a tenth: the exponent and, linearly, the mantissa of it as an f32.
HWY_INLINE double RoughLog2(size_t count) {
  return static_cast<double>(std::bit_cast<int32_t>(static_cast<float>(count))) * 0x1p-23;
}

template <typename TI>
struct Bound {
  TI key;
  size_t reached;  // how many keys are >= key; 0: fewer than k are >= the floor
};

// A key not below `floor` that at least k and at most `limit` of keys[0, count) reach; where ties
// forbid that, the k-th largest key itself, which fewer than k keys exceed.
// Each step counts the keys that reach a guess, without a branch on the data. The first guesses
// gallop down from the largest key, starting with an eighth of an octave. Then the counts on both
// sides are interpolated: the tail of a row falls off about exponentially, so two or three more
// steps do where bisection takes eight. It still bisects every other step, so that no row is slow.
// Pre: padded, count > 0.
template <typename TI>
Bound<TI> FindBound(const TI* keys, size_t count, size_t k, size_t limit, TI floor,
                    core::Format<TI> format) {
  const int64_t max = std::min(MaxKey(keys, count), format.top_key());
  int64_t step =
      sizeof(TI) == 4 ? int64_t{1} << 20 : (format.inf == core::kBF16Format.inf ? 16 : 128);
  int64_t low = max + 1;
  int64_t high = low;
  size_t reached = 0;       // by low
  size_t reached_high = 0;  // by high, < k
  while (reached < k) {
    if (low <= floor) {
      return {floor, 0};
    }
    high = low;
    reached_high = reached;
    low = std::max<int64_t>(floor, low - step);
    reached = CountGe(keys, count, static_cast<TI>(low));
    step *= 4;
  }
  const double wanted = RoughLog2((k + limit) / 2);
  for (bool bisect = false; reached > limit && high - low > 1; bisect = !bisect) {
    double share = 0.5;
    if (!bisect) {
      const double above = RoughLog2(reached);
      share = (above - wanted) / (above - RoughLog2(std::max<size_t>(reached_high, 1)) + 0.01);
    }
    const int64_t guess = low + static_cast<int64_t>(static_cast<double>(high - low) * share);
    const int64_t middle = std::clamp(guess, low + 1, high - 1);
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

// One bit a lane.
template <class D>
HWY_INLINE uint64_t Bits(D d, hn::Mask<D> mask) {
  static_assert(hn::MaxLanes(d) <= 64);
  uint64_t bits =
      0;  // what StoreMaskBits writes is read back in one piece, through the store queue
  if constexpr (hn::MaxLanes(d) <= 8) {
    uint8_t bytes[8];
    hn::StoreMaskBits(d, mask, bytes);
    bits = bytes[0];
  } else if constexpr (hn::MaxLanes(d) == 16) {
    HWY_ALIGN uint8_t bytes[8];
    hn::StoreMaskBits(d, mask, bytes);
    uint16_t word;
    std::memcpy(&word, bytes, sizeof(word));
    bits = word;
  } else {
    HWY_ALIGN uint8_t bytes[8];
    hn::StoreMaskBits(d, mask, bytes);
    uint32_t word;
    std::memcpy(&word, bytes, sizeof(word));
    bits = word;
  }
  return bits;
}

// Stores base + i for each lane i that is set, in order, and returns how many. Writes whole
// vectors: `out` has room for Lanes(d) elements.
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

// Candidates in ascending order of index; both arrays are followed by room for kSlack elements.
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

  template <class D>
  HWY_INLINE void AppendAll(D d, hn::Vec<D> vector, int32_t base) {
    const hn::Repartition<int32_t, D> di;
    hn::StoreU(vector, d, keys + count);
    for (size_t i = 0; i < hn::Lanes(d); i += hn::Lanes(di)) {
      hn::StoreU(hn::Iota(di, base + static_cast<int32_t>(i)), di, indices + count + i);
    }
    count += hn::Lanes(d);
  }
};

// More elements than this of 64 are moved by vectors, fewer one by one: each compressed vector ends
// in another cache line than it begins, which for the usual one or two took twice as long.
constexpr int kDense = 12;

// Keeps the candidates whose key is >= bound. Pre: padded.
template <typename TI>
void KeepGe(Candidates<TI>& candidates, TI bound) {
  const Tag<TI> d;
  const hn::Repartition<int32_t, Tag<TI>> di;
  const size_t lanes = hn::Lanes(d);
  const size_t count = candidates.count;
  const auto limit = hn::Set(d, bound);
  size_t kept = 0;
  for (size_t i = 0; i < count; i += lanes) {
    const auto keys = hn::LoadU(d, candidates.keys + i);
    const auto mask = hn::Ge(keys, limit);
    uint64_t bits = Bits(d, mask);
    if (std::popcount(bits) * 64 <= kDense * static_cast<int>(lanes)) {
      for (; bits != 0; bits &= bits - 1) {
        const size_t at = i + static_cast<size_t>(std::countr_zero(bits));
        candidates.keys[kept] = candidates.keys[at];
        candidates.indices[kept++] = candidates.indices[at];
      }
      continue;
    }
    hn::StoreU(hn::Compress(keys, mask), d, candidates.keys + kept);
    int32_t* out = candidates.indices + kept;
    if constexpr (sizeof(TI) == 4) {
      hn::StoreU(hn::Compress(hn::LoadU(di, candidates.indices + i), mask), di, out);
    } else {
      const hn::Half<Tag<TI>> half;
      const auto low = hn::PromoteMaskTo(di, half, hn::LowerHalfOfMask(half, mask));
      const auto high = hn::PromoteMaskTo(di, half, hn::UpperHalfOfMask(half, mask));
      const auto second = hn::LoadU(di, candidates.indices + i + hn::Lanes(di));
      hn::StoreU(hn::Compress(hn::LoadU(di, candidates.indices + i), low), di, out);
      hn::StoreU(hn::Compress(second, high), di, out + hn::CountTrue(di, low));
    }
    kept += static_cast<size_t>(std::popcount(bits));
  }
  candidates.count = kept;
}

// The first `wanted` indices of candidates whose key is `key`. Pre: padded; there are as many.
template <typename TI>
void TakeEqual(const Candidates<TI>& candidates, TI key, size_t wanted, int32_t* out) {
  const Tag<TI> d;
  const auto equal = hn::Set(d, key);
  size_t taken = 0;
  for (size_t i = 0; taken < wanted; i += hn::Lanes(d)) {
    uint64_t bits = Bits(d, hn::Eq(hn::LoadU(d, candidates.keys + i), equal));
    for (; bits != 0 && taken < wanted; bits &= bits - 1) {
      out[taken++] = candidates.indices[i + static_cast<size_t>(std::countr_zero(bits))];
    }
  }
}

constexpr size_t kRankLimit = 256;

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

// order[r] = index of the candidate of rank r. Every pair is compared, without a branch: for up to
// kRankLimit candidates nothing was faster (docs/performance.md); to leave out those that do not
// belong to the k best would be one, mispredicted for every other candidate. Candidates of equal
// keys share a rank and take places behind it in turn. Pre: padded; 0 < count <= kRankLimit.
template <typename TI>
void RankSort(const Candidates<TI>& candidates, int32_t* order) {
  const size_t lanes = hn::Lanes(Tag<TI>());
  const size_t count = candidates.count;
  const TI* keys = candidates.keys;
  TI ranks[kRankLimit + 4 * hn::MaxLanes(Tag<TI>())];
  for (size_t i = 0; i < count;) {
    const size_t left = count - i;
    if (left > 2 * lanes) {  // may load a vector past the padding, of no use
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

// Puts candidates.indices in order: by descending key, then as they stand, which is by index. Least
// significant digit first over the distance from the largest key, whose few bits at the top of a
// row are shared out over the fewest passes. `pairs` has room for 2 * count.
template <typename TI>
void RadixSort(Candidates<TI>& candidates, uint64_t* pairs) {
  constexpr int kMaxDigit = 11;
  const size_t count = candidates.count;
  const int64_t max = *std::max_element(candidates.keys, candidates.keys + count);
  const int64_t min = *std::min_element(candidates.keys, candidates.keys + count);
  uint64_t* from = pairs;
  uint64_t* to = pairs + count;
  for (size_t i = 0; i < count; ++i) {
    const auto distance = static_cast<uint64_t>(max - candidates.keys[i]);
    from[i] = distance << 32 | static_cast<uint32_t>(candidates.indices[i]);
  }
  const auto bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(max - min)));
  const int most = std::clamp(static_cast<int>(std::bit_width(count)) - 2, 4, kMaxDigit);
  const int passes = (bits + most - 1) / most;
  const int digit = passes == 0 ? 0 : (bits + passes - 1) / passes;
  const uint64_t mask = (uint64_t{1} << digit) - 1;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = 32 + pass * digit;
    uint32_t start[size_t{1} << kMaxDigit];
    std::fill_n(start, mask + 1, 0);
    for (size_t i = 0; i < count; ++i) {
      ++start[from[i] >> shift & mask];
    }
    uint32_t sum = 0;
    for (size_t value = 0; value <= mask; ++value) {
      const uint32_t here = start[value];
      start[value] = sum;
      sum += here;
    }
    for (size_t i = 0; i < count; ++i) {
      to[start[from[i] >> shift & mask]++] = from[i];
    }
    std::swap(from, to);
  }
  for (size_t i = 0; i < count; ++i) {
    candidates.indices[i] = static_cast<int32_t>(from[i] & 0xffffffffu);
  }
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
