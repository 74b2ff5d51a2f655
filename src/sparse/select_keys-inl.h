// The best blocks of keys of a query: lists of candidates, and the answer. Included once per SIMD
// target.
#if defined(RIFFLE_SPARSE_SELECT_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_SELECT_KEYS_INL_H_
#undef RIFFLE_SPARSE_SELECT_KEYS_INL_H_
#else
#define RIFFLE_SPARSE_SELECT_KEYS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/order-inl.h"
#include "select/bound-inl.h"
#include "select/compress-inl.h"
#include "select/limits.h"
#include "select/sort-inl.h"
#include "sparse/indexer_args.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
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

// Keys of scores and numbers of blocks, in ascending order of block; room for select::kSlack more
// elements follows each array.
using ScoreList = Candidates<int32_t>;

// Keeps the candidates above `key` and the first `ties` of those equal to it.
HWY_INLINE void KeepFirstTies(ScoreList& list, int32_t key, size_t ties) {
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
// order of block. Returns a key that at least k of them reach.
HWY_INLINE int32_t Prune(ScoreList& list, size_t k, size_t limit) {
  HWY_DASSERT(0 < k && k <= limit && limit < list.count);
  Pad(Tag<int32_t>(), list.keys, list.count);
  const Bound<int32_t> bound =
      FindBound(list.keys, list.count, k, limit, core::kF32Format.lowest_key(), core::kF32Format);
  if (bound.reached <= limit) {
    KeepGe(list, bound.key);
  } else {  // more ties than fit; fewer than k candidates are above them
    KeepFirstTies(list, bound.key, k - CountGe(list.keys, list.count, bound.key + 1));
  }
  HWY_DASSERT(k <= list.count && list.count <= limit);
  return bound.key;
}

// Appends scores [0, count) of keys `first`, first + 1 ... that reach `bound`.
HWY_INLINE void AppendScores(const float* scores, int count, int32_t first, int32_t bound,
                             ScoreList& list) {
  const Tag<int32_t> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto limit = hn::Set(d, bound);
  for (int i = 0; i < count; i += lanes) {
    const auto bits = hn::BitCast(d, hn::LoadU(hn::Rebind<float, decltype(d)>(), scores + i));
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

// Turns scores of consecutive keys into those of their blocks.
class BlockReducer {
 public:
  BlockReducer() = default;
  BlockReducer(int64_t block, BlockScore score) : block_(block), score_(score) {}

  // Takes scores [0, count) of keys from `key` on and hands (block, key of its score) to `emit` for
  // each block that ends among them; `end` is the end of the query's keys.
  template <class Emit>
  HWY_INLINE void Take(const float* scores, int count, int64_t key, int64_t end, const Emit& emit) {
    for (int i = 0; i < count; ++i, ++key) {
      if (score_ == BlockScore::kMean) {
        sum_ = size_ == 0 ? scores[i] : sum_ + scores[i];
      } else {
        const int32_t at = core::Key(std::bit_cast<int32_t>(scores[i]), core::kF32Format);
        max_ = size_ == 0 ? at : std::max(max_, at);
      }
      ++size_;
      if (size_ == block_ || key + 1 == end) {
        emit(key / block_, BlockKey());
        size_ = 0;
      }
    }
  }

 private:
  int32_t BlockKey() const {
    return score_ == BlockScore::kMax
               ? max_
               : core::Key(std::bit_cast<int32_t>(sum_ / static_cast<float>(size_)),
                           core::kF32Format);
  }

  int64_t block_ = 1;
  BlockScore score_ = BlockScore::kMax;
  int64_t size_ = 0;
  float sum_ = 0;
  int32_t max_ = 0;
};

// The slot of a position, or the position.
HWY_INLINE int32_t Result(const IndexerArgs& args, const SelectArgs& select, int64_t token,
                          int32_t number) {
  if (!select.slots) {
    return number;
  }
  const int32_t* pages = args.page_numbers + args.page_begin[args.ranges[token].seq];
  return static_cast<int32_t>(pages[number / args.page_size] * args.page_size +
                              number % args.page_size);
}

// The block that number `i` of a query's list stands for.
HWY_INLINE int32_t BlockOf(const IndexerArgs& args, int64_t token, int32_t i) {
  return args.candidates != nullptr ? args.candidates[token * args.candidate_stride + i] : i;
}

// Writes a query's answer: the forced members, then the `wanted` best of `list`, then -1.
HWY_INLINE void WriteAnswer(const IndexerArgs& args, const SelectArgs& select, int64_t token,
                            ScoreList& list, const SelectScratch& layout, uint8_t* scratch) {
  int32_t* out = select.indices.data + token * select.indices.row_stride;
  int64_t at = 0;
  const auto put = [&](int64_t block) HWY_ATTR {
    const int32_t result = Result(args, select, token, static_cast<int32_t>(block));
    std::memcpy(out + at++, &result, sizeof(result));
  };
  const int64_t blocks = select.Blocks(token);
  const int64_t head = select.Head(token);
  const int64_t tail = select.Tail(token);
  const int64_t wanted = select.k - head - tail;
  for (int64_t block = 0; block < head; ++block) {
    put(block);
  }
  for (int64_t block = blocks - tail; block < blocks; ++block) {
    put(block);
  }
  const auto k = static_cast<size_t>(std::min<int64_t>(wanted, static_cast<int64_t>(list.count)));
  if (k > 0) {
    const size_t limit = select::SortLimit(k, /*sorted=*/true);
    if (list.count > limit) {
      Prune(list, k, limit);
    }
    int32_t ranked[select::kRankLimit];
    const int32_t* sorted = SortedIndices(list, ranked, layout.pairs.At(scratch));
    for (size_t i = 0; i < k; ++i) {
      put(BlockOf(args, token, sorted[i]));
    }
  }
  while (at < select.k) {
    const int32_t none = -1;
    std::memcpy(out + at++, &none, sizeof(none));
  }
}

// The answer where everything fits: forced members and candidates in ascending order.
HWY_INLINE void WriteAll(const IndexerArgs& args, const SelectArgs& select, int64_t token,
                         int64_t count) {
  int32_t* out = select.indices.data + token * select.indices.row_stride;
  const int64_t blocks = select.Blocks(token);
  const int64_t head = select.Head(token);
  const int64_t tail = select.Tail(token);
  const int64_t first = args.candidates != nullptr ? 0 : head;
  for (int64_t i = 0; i < select.k; ++i) {
    int64_t block = -1;
    if (i < head) {
      block = i;
    } else if (i < head + count) {
      block = BlockOf(args, token, static_cast<int32_t>(first + i - head));
    } else if (i < head + count + tail) {
      block = blocks - tail + (i - head - count);
    }
    const int32_t result =
        block < 0 ? -1 : Result(args, select, token, static_cast<int32_t>(block));
    std::memcpy(out + i, &result, sizeof(result));
  }
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
