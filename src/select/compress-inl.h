// Lists of candidates, and their compaction to those wanted. Included once per SIMD target.
#if defined(RIFFLE_SELECT_COMPRESS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SELECT_COMPRESS_INL_H_
#undef RIFFLE_SELECT_COMPRESS_INL_H_
#else
#define RIFFLE_SELECT_COMPRESS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/order-inl.h"
#include "select/bound-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::select::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Tag;

// The mask as an integer, one bit per lane.
template <class D>
HWY_INLINE uint64_t Bits(D d, hn::Mask<D> mask) {
  static_assert(hn::MaxLanes(d) <= 64);
  // One load reads back what StoreMaskBits wrote, so the store queue can forward it.
  uint64_t bits = 0;
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
  if constexpr (sizeof(TI) == 8) {
    const hn::Rebind<int32_t, D> narrow;
    hn::StoreU(hn::Add(hn::DemoteTo(narrow, lanes), hn::Set(narrow, base)), narrow, out);
  } else if constexpr (sizeof(TI) == 4) {
    hn::StoreU(hn::Add(lanes, hn::Set(d, base)), d, out);
  } else {
    const hn::Repartition<int32_t, D> wide;
    const auto offset = hn::Set(wide, base);
    hn::StoreU(hn::Add(hn::PromoteLowerTo(wide, lanes), offset), wide, out);
    hn::StoreU(hn::Add(hn::PromoteUpperTo(wide, lanes), offset), wide, out + hn::Lanes(wide));
  }
  return hn::CountTrue(d, mask);
}

// Candidates in ascending order of index. Room for kSlack elements follows each array.
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

// If more than this many of 64 elements are wanted they are moved as vectors, otherwise one by one:
// a compressed vector usually straddles two cache lines, and storing one for the usual one or two
// elements took twice as long.
constexpr int kDense = 12;

// Stores the indices from[0, Lanes(d)) whose lanes are set, in order. Writes whole vectors.
template <class D, typename TI = hn::TFromD<D>>
HWY_INLINE void CompressIndicesFrom(D d, hn::Mask<D> mask, const int32_t* from, int32_t* out) {
  if constexpr (sizeof(TI) == 8) {
    const hn::Rebind<int32_t, D> narrow;
    const auto wide = hn::PromoteTo(d, hn::LoadU(narrow, from));
    hn::StoreU(hn::DemoteTo(narrow, hn::Compress(wide, mask)), narrow, out);
  } else if constexpr (sizeof(TI) == 4) {
    hn::StoreU(hn::Compress(hn::LoadU(d, from), mask), d, out);
  } else {
    const hn::Repartition<int32_t, D> di;
    const hn::Half<D> half;
    const auto low = hn::PromoteMaskTo(di, half, hn::LowerHalfOfMask(half, mask));
    const auto high = hn::PromoteMaskTo(di, half, hn::UpperHalfOfMask(half, mask));
    const auto second = hn::LoadU(di, from + hn::Lanes(di));
    hn::StoreU(hn::Compress(hn::LoadU(di, from), low), di, out);
    hn::StoreU(hn::Compress(second, high), di, out + hn::CountTrue(di, low));
  }
}

// Keeps the candidates whose key is >= bound. The keys are padded.
template <typename TI>
void KeepGe(Candidates<TI>& candidates, TI bound) {
  HWY_DASSERT(IsPadded(candidates.keys, candidates.count));
  if (bound == hwy::LimitsMin<TI>()) {  // all candidates reach it, but so would the padding
    return;
  }
  const Tag<TI> d;
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
    CompressIndicesFrom(d, mask, candidates.indices + i, candidates.indices + kept);
    kept += static_cast<size_t>(std::popcount(bits));
  }
  candidates.count = kept;
}

// Stores the first `wanted` indices of candidates whose key is `key`. There are at least that many.
template <typename TI>
void TakeEqual(const Candidates<TI>& candidates, TI key, size_t wanted, int32_t* out) {
  const Tag<TI> d;
  const auto equal = hn::Set(d, key);
  size_t taken = 0;
  for (size_t i = 0; taken < wanted; i += hn::Lanes(d)) {
    HWY_DASSERT(i < candidates.count);
    uint64_t bits = Bits(d, hn::Eq(hn::LoadU(d, candidates.keys + i), equal));
    for (; bits != 0 && taken < wanted; bits &= bits - 1) {
      out[taken++] = candidates.indices[i + static_cast<size_t>(std::countr_zero(bits))];
    }
  }
}

}  // namespace riffle::select::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
