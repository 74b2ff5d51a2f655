// First pass: the maximum of each contiguous bucket of a row, at the speed of reading.
//
// A superblock has as many buckets as a vector has lanes. Each bucket is first reduced lane by lane
// to one vector. A tree of interleavings then reduces and transposes these vectors together, so
// that lane i of the result is the maximum of bucket i. For vectors of L lanes and buckets of G
// vectors that takes L * G loads and maxima and 3 (L - 1) other operations for every L * G vectors
// read.
#if defined(RIFFLE_TOPK_BUCKET_MAXIMA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_BUCKET_MAXIMA_INL_H_
#undef RIFFLE_TOPK_BUCKET_MAXIMA_INL_H_
#else
#define RIFFLE_TOPK_BUCKET_MAXIMA_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "core/order-inl.h"
#include "topk/bucket_maxima/bucket_plan.h"
#include "topk/topk_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;
using core::HWY_NAMESPACE::Tag;

// Reads elements for maxima. kSmallest: maxima of negated values.
// kKeyed compares keys, for any row. The other two compare raw bits, which takes three or four
// operations fewer per vector. As signed integers, the bits of positive values are in the order of
// the values, so a bound that comes out positive is as good as one from keys (kPositive). As
// unsigned integers, the bits of negative values are in reverse order and above all others, so
// minima give a bound for rows whose bound is not positive (kNegative). Neither holds for a row
// with a NaN whose sign bit is set. `max_bits` detects those: as unsigned integers they are the
// largest bits of all.
template <typename TI, FirstPass kPass, bool kSmallest>
struct ElementReader {
  using Key = TI;
  using D = Tag<TI>;
  using DU = hn::RebindToUnsigned<D>;
  static constexpr bool kMinima = kPass == FirstPass::kNegative;
  using DV = std::conditional_t<kMinima, DU, D>;
  using V = hn::Vec<DV>;

  DV d;
  core::Format<TI> format;
  hn::Vec<DU> max_bits;  // the lane-wise maximum of the bits as unsigned integers

  explicit ElementReader(core::Format<TI> row_format)
      : d(), format(row_format), max_bits(hn::Zero(DU())) {}

  // Whether no NaN with its sign bit set was loaded.
  HWY_INLINE bool BitsAreOrdered() const {
    const auto minus_inf = static_cast<hwy::MakeUnsigned<TI>>(format.minus_inf());
    return kPass == FirstPass::kKeyed || hn::ReduceMax(DU(), max_bits) <= minus_inf;
  }

  HWY_INLINE V Load(const TI* from) {
    const auto bits = hn::LoadU(D(), from);
    if constexpr (kPass == FirstPass::kKeyed) {
      return Keys(d, bits, core::Format<TI>{format.inf, kSmallest});
    } else {
      max_bits = hn::Max(max_bits, hn::BitCast(DU(), bits));
      const auto flipped = kSmallest ? hn::Xor(bits, hn::Set(D(), hwy::LimitsMin<TI>())) : bits;
      return hn::BitCast(d, flipped);
    }
  }

  static HWY_INLINE V Best(V a, V b) {
    if constexpr (kMinima) {
      return hn::Min(a, b);
    } else {
      return hn::Max(a, b);
    }
  }

  // The maxima as the finish compares them.
  HWY_INLINE hn::Vec<D> Maxima(V best) const {
    if constexpr (kMinima) {
      const auto bits = hn::BitCast(D(), best);
      const auto key = hn::Sub(hn::Set(D(), hwy::LimitsMin<TI>()), bits);
      const auto known = hn::IfNegativeThenElse(bits, key, hn::Set(D(), TI{1}));
      return kSmallest ? hn::Max(known, hn::Set(D(), format.nan_key())) : known;
    } else {
      return best;
    }
  }
};

// Maxima of integers compare keys, which are one operation away from the bits.
template <class F>
struct IntegerElementReader {
  using Key = typename F::Key;
  using D = Tag<typename F::Element>;
  using DV = D;
  using V = hn::Vec<D>;

  D d;
  V flip;

  explicit IntegerElementReader(F format) : d(), flip(hn::Set(D(), format.flip)) {}

  HWY_INLINE V Load(const typename F::Element* from) const {
    return hn::Xor(hn::LoadU(d, from), flip);
  }
  static HWY_INLINE V Best(V a, V b) { return hn::Max(a, b); }
  HWY_INLINE V Maxima(V best) const { return best; }
  HWY_INLINE bool BitsAreOrdered() const { return true; }
};

// Reduces the vectors of one bucket lane by lane.
template <class Reader, typename TI>
HWY_INLINE typename Reader::V BestOfBucket(Reader& reader, const TI* from, size_t vectors) {
  using V = typename Reader::V;
  const size_t lanes = hn::Lanes(reader.d);
  V best = reader.Load(from);
  size_t i = 1;
  for (; i + 3 < vectors; i += 4) {
    const V pair0 =
        Reader::Best(reader.Load(from + i * lanes), reader.Load(from + (i + 1) * lanes));
    const V pair1 =
        Reader::Best(reader.Load(from + (i + 2) * lanes), reader.Load(from + (i + 3) * lanes));
    best = Reader::Best(best, Reader::Best(pair0, pair1));
  }
  for (; i < vectors; ++i) {
    best = Reader::Best(best, reader.Load(from + i * lanes));
  }
  return best;
}

// Reduces buckets [kFirst, kFirst + 2^kLevel) of those whose maxima will fill one 16-byte block, in
// memory order. Each position of every block of the result holds a part of one bucket's maximum.
// Interleaving leaves the buckets in bit-reversed positions.
template <size_t kLevel, size_t kFirst, size_t kVectors, class Reader, typename TI>
HWY_INLINE typename Reader::V BlockTree(Reader& reader, const TI* block, size_t vectors) {
  const size_t count = kVectors != 0 ? kVectors : vectors;
  if constexpr (kLevel == 0) {
    return BestOfBucket(reader, block + kFirst * count * hn::Lanes(reader.d), count);
  } else {
    constexpr size_t kHalf = size_t{1} << (kLevel - 1);
    const auto a = BlockTree<kLevel - 1, kFirst, kVectors>(reader, block, vectors);
    const auto b = BlockTree<kLevel - 1, kFirst + kHalf, kVectors>(reader, block, vectors);
    return Reader::Best(hn::InterleaveLower(reader.d, a, b), hn::InterleaveUpper(reader.d, a, b));
  }
}

// Moves element i of each 16-byte block to the position whose bits are those of i reversed.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ReversePositions(D d, V v) {
  constexpr size_t kBytes = sizeof(hn::TFromD<D>);
  if constexpr (kBytes == 8) {
    return v;
  } else if constexpr (kBytes == 4) {
    return hn::Per4LaneBlockShuffle<3, 1, 2, 0>(v);
  } else {
    HWY_ALIGN static constexpr uint8_t kTables[2][16] = {
        {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15},
        {0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15}};
    const uint8_t* table = kTables[kBytes - 1];
    const hn::Repartition<uint8_t, D> bytes;
    return hn::BitCast(d,
                       hn::TableLookupBytes(hn::BitCast(bytes, v), hn::LoadDup128(bytes, table)));
  }
}

// The maxima of as many buckets as a vector has lanes.
template <size_t kVectors, class Reader, typename TI>
HWY_INLINE typename Reader::V Superblock(Reader& reader, const TI* from, size_t vectors) {
  constexpr size_t kPerBlock = 16 / sizeof(TI);
  constexpr size_t kLevels = std::bit_width(kPerBlock) - 1;
  constexpr size_t kBlocks = hn::MaxLanes(typename Reader::DV()) / kPerBlock;
  const auto d = reader.d;
  const size_t step = (kVectors != 0 ? kVectors : vectors) * hn::Lanes(d) * kPerBlock;
  const auto block = [&](size_t i) HWY_ATTR {
    return BlockTree<kLevels, 0, kVectors>(reader, from + i * step, vectors);
  };
  const auto merge_halves = [&](auto a, auto b) HWY_ATTR {
    return Reader::Best(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
  };
  const auto b0 = block(0);
  if constexpr (kBlocks == 1) {
    return ReversePositions(d, b0);
  } else if constexpr (kBlocks == 2) {
    return ReversePositions(d, merge_halves(b0, block(1)));
  } else {
    static_assert(kBlocks == 4);
    const auto b1 = block(1);
    const auto even = merge_halves(b0, block(2));  // blocks 0 0 2 2
    const auto odd = merge_halves(b1, block(3));   // blocks 1 1 3 3
    return ReversePositions(d, Reader::Best(hn::OddEvenBlocks(odd, even),
                                            hn::SwapAdjacentBlocks(hn::OddEvenBlocks(even, odd))));
  }
}

// Stores maxima as keys in to[0, Lanes).
template <class D, typename TKey>
HWY_INLINE void StoreMaxima(D d, hn::Vec<D> maxima, TKey* to) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(TKey)) {
    hn::StoreU(maxima, d, to);
  } else {
    const hn::Repartition<TKey, D> wide;
    hn::StoreU(hn::PromoteLowerTo(wide, maxima), wide, to);
    hn::StoreU(hn::PromoteUpperTo(wide, maxima), wide, to + hn::Lanes(wide));
  }
}

template <size_t kVectors, class Reader, typename TI>
HWY_INLINE size_t Superblocks(Reader& reader, const TI* row, size_t bucket, size_t end, size_t size,
                              typename Reader::Key* maxima) {
  const size_t lanes = hn::Lanes(reader.d);
  for (; bucket + lanes <= end; bucket += lanes) {
    const auto best = Superblock<kVectors>(reader, row + bucket * size, size / lanes);
    StoreMaxima(typename Reader::D(), reader.Maxima(best), maxima + bucket);
  }
  return bucket;
}

// The maximum of `count` elements, count > 0.
template <class Reader, typename TI>
HWY_INLINE TI ShortBucket(Reader& reader, const TI* from, size_t count) {
  const typename Reader::D d;
  const size_t lanes = hn::Lanes(d);
  auto max = hn::Set(d, hwy::LimitsMin<TI>());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    max = hn::Max(max, reader.Maxima(reader.Load(from + i)));
  }
  if (i < count) {
    HWY_ALIGN TI tail[hn::MaxLanes(d)];
    std::memcpy(tail, from + i, sizeof(TI));
    hn::Store(hn::Set(d, tail[0]), d, tail);  // lanes past the end repeat an element
    std::memcpy(tail, from + i, (count - i) * sizeof(TI));
    max = hn::Max(max, reader.Maxima(reader.Load(tail)));
  }
  return hn::ReduceMax(d, max);
}

// Stores the maxima of buckets [begin, end) of a row; for an empty bucket, the lowest integer.
// Returns whether the comparisons of `reader` are valid for this row (BitsAreOrdered).
template <class Reader, typename TI>
bool BucketMaxima(Reader reader, const TI* row, const BucketBounds& buckets, size_t begin,
                  size_t end, typename Reader::Key* maxima) {
  const size_t size = buckets.size();
  const size_t lead = buckets.lead();
  HWY_DASSERT(size % hn::Lanes(reader.d) == 0 && begin <= end);
  const size_t whole = std::min(end, (buckets.n() - lead) / size);
  size_t bucket = begin;
  switch (size / hn::Lanes(reader.d)) {
    case 1:
      bucket = Superblocks<1>(reader, row + lead, bucket, whole, size, maxima);
      break;
    case 2:
      bucket = Superblocks<2>(reader, row + lead, bucket, whole, size, maxima);
      break;
    case 4:
      bucket = Superblocks<4>(reader, row + lead, bucket, whole, size, maxima);
      break;
    default:
      bucket = Superblocks<0>(reader, row + lead, bucket, whole, size, maxima);
      break;
  }
  if (begin == 0 && bucket > 0 && lead > 0) {
    maxima[0] = std::max<typename Reader::Key>(maxima[0], ShortBucket(reader, row, lead));
  }
  for (; bucket < end; ++bucket) {
    const size_t from = buckets.Begin(bucket);
    const size_t count = buckets.End(bucket) - from;
    maxima[bucket] = count == 0 ? hwy::LimitsMin<typename Reader::Key>()
                                : ShortBucket(reader, row + from, count);
  }
  return reader.BitsAreOrdered();
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
