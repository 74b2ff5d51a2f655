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

#include "core/order.h"
#include "select/float_candidates-inl.h"
#include "select/limits.h"
#include "select/sort-inl.h"
#include "sparse/indexer_args.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
using select::HWY_NAMESPACE::AppendReaching;
using select::HWY_NAMESPACE::Prune;
using select::HWY_NAMESPACE::SortedIndices;

// Order keys of scores, and numbers of blocks, in ascending order of block.
using ScoreList = select::HWY_NAMESPACE::FloatCandidates;

// Turns scores of consecutive keys into those of their blocks.
class BlockReducer {
 public:
  BlockReducer() = default;
  BlockReducer(int64_t block, BlockScore score) : block_(block), score_(score) {}

  // Adds scores [0, count) of keys from `key` on and hands (block, order key of its score) to
  // `emit` for each block that ends among them; `end` is the end of the query's keys.
  template <class Emit>
  HWY_INLINE void AddScores(const float* scores, int count, int64_t key, int64_t end,
                            const Emit& emit) {
    for (int i = 0; i < count; ++i, ++key) {
      if (score_ == BlockScore::kMean) {
        sum_ = size_ == 0 ? scores[i] : sum_ + scores[i];
      } else {
        const int32_t at = core::Key(std::bit_cast<int32_t>(scores[i]), core::kF32Format);
        max_ = size_ == 0 ? at : std::max(max_, at);
      }
      ++size_;
      if (size_ == block_ || key + 1 == end) {
        emit(key / block_, ScoreKey());
        size_ = 0;
      }
    }
  }

 private:
  int32_t ScoreKey() const {
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
                          int32_t position) {
  if (!select.slots) {
    return position;
  }
  const int32_t* pages = args.page_numbers + args.page_begin[args.ranges[token].seq];
  return static_cast<int32_t>(pages[position / args.page_size] * args.page_size +
                              position % args.page_size);
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
