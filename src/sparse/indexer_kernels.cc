#include "sparse/indexer_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/indexer_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include "core/dispatch.h"

#include <limits>

#include "core/atomic_max.h"
#include "core/bf16_dot.h"
#include "sparse/scores-inl.h"
#include "sparse/select_keys-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {

template <class Math>
void Logits(const IndexerArgs& args, const IndexerItem& item, const IndexLogitsOut& out,
            const ScoreScratch& layout, uint8_t* scratch) {
  HWY_DASSERT(item.begin < item.end);
  HWY_DASSERT(item.queries.end - item.queries.begin <= kQueryBlock);
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  Scorer<Math> scorer(args, item, layout, scratch);
  for (int32_t begin = item.begin; begin < item.end; begin += kTileKeys) {
    scorer.Pack(begin);
    for (int32_t token = item.queries.begin; token < item.queries.end; ++token) {
      const QueryRange& range = args.ranges[token];
      float* row = out.data + token * out.row_stride + begin;
      const int32_t from = std::clamp(range.begin - begin, 0, scorer.count());
      const int32_t to = std::clamp(range.end - begin, from, scorer.count());
      if (from < to) {
        const float* logits = scorer.Score(token - item.queries.begin);
        std::memcpy(row + from, logits + from, static_cast<size_t>(to - from) * sizeof(float));
      }
      std::fill(row, row + from, kMinusInf);
      std::fill(row + to, row + scorer.count(), kMinusInf);
    }
  }
}

// A query's list in a thread's scratch while an item runs.
HWY_INLINE ScoreList ListOf(const SelectScratch& lists, int query, uint8_t* scratch) {
  return {lists.order_keys.At(scratch) + query * lists.stride,
          lists.blocks.At(scratch) + query * lists.stride,
          static_cast<size_t>(lists.counts.At(scratch)[query])};
}

// How many members a query's answer takes from its list.
HWY_INLINE int64_t Wanted(const SelectArgs& select, int64_t token) {
  return select.k - select.Head(token) - select.Tail(token);
}

// Scores one item and keeps the best blocks of its queries.
template <class Math>
class ItemSearch {
 public:
  ItemSearch(const IndexerArgs& args, const SelectArgs& select, const IndexerItem& item,
             const SplitCandidates* kept, const ScoreScratch& layout, const SelectScratch& lists,
             uint8_t* scratch)
      : args_(args),
        select_(select),
        item_(item),
        kept_(kept),
        lists_(lists),
        scratch_(scratch),
        scorer_(args, item, layout, scratch) {
    const int queries = item.queries.end - item.queries.begin;
    std::fill_n(lists.counts.At(scratch), queries, 0);
    std::fill_n(lists.bounds.At(scratch), queries, core::kF32Format.lowest_key());
  }

  void Run() {
    std::fill(std::begin(reducers_), std::end(reducers_),
              BlockReducer(select_.block, select_.block_score));
    for (int32_t begin = item_.begin; begin < item_.end; begin += kTileKeys) {
      scorer_.Pack(begin);
      for (int32_t token = item_.queries.begin; token < item_.queries.end; ++token) {
        const QueryRange& range = args_.ranges[token];
        const int32_t from = std::max(range.begin, begin);
        const int32_t to = std::min(range.end, begin + scorer_.count());
        if (from < to && Wanted(select_, token) > 0) {
          const int query = token - item_.queries.begin;
          AddScores(token, query, scorer_.Score(query) + (from - begin), from, to - from);
        }
      }
    }
    for (int32_t token = item_.queries.begin; token < item_.queries.end; ++token) {
      Finish(token, token - item_.queries.begin);
    }
  }

 private:
  // Raises the query's bounds by pruning its list.
  void PruneList(int32_t token, int query, ScoreList& list) {
    const int32_t key =
        Prune(list, static_cast<size_t>(Wanted(select_, token)), static_cast<size_t>(lists_.limit));
    // Later blocks of this item lose ties, so that their scores must be above the bound.
    lists_.bounds.At(scratch_)[query] = key + 1;
    if (kept_ != nullptr) {
      core::AtomicMax(kept_->bounds[token], key);
    }
  }

  int32_t BoundOf(int32_t token, int query) const {
    const int32_t bound = lists_.bounds.At(scratch_)[query];
    return kept_ == nullptr ? bound
                            : std::max(bound, kept_->bounds[token].load(std::memory_order_relaxed));
  }

  void AddScores(int32_t token, int query, const float* scores, int32_t key, int32_t count) {
    ScoreList list = ListOf(lists_, query, scratch_);
    if (static_cast<int64_t>(list.count) + kTileKeys > lists_.capacity) {
      PruneList(token, query, list);
    }
    const int32_t bound = BoundOf(token, query);
    if (select_.block == 1) {
      AppendReaching(scores, count, key, bound, list);
    } else {
      reducers_[query].AddScores(scores, count, key, args_.ranges[token].end,
                                 [&](int64_t block, int32_t at) HWY_ATTR {
                                   if (at >= bound) {
                                     list.keys[list.count] = at;
                                     list.indices[list.count++] = static_cast<int32_t>(block);
                                   }
                                 });
    }
    HWY_DASSERT(static_cast<int64_t>(list.count) <= lists_.capacity);
    lists_.counts.At(scratch_)[query] = static_cast<int64_t>(list.count);
  }

  void Finish(int32_t token, int query) {
    ScoreList list = ListOf(lists_, query, scratch_);
    if (static_cast<int64_t>(list.count) > lists_.limit) {
      PruneList(token, query, list);
    }
    if (kept_ == nullptr) {
      if (args_.ranges[token].begin < args_.ranges[token].end) {  // else write_all has done it
        WriteAnswer(args_, select_, token, list, lists_, scratch_);
      }
      return;
    }
    const int64_t at = item_.index * kQueryBlock + query;
    std::copy_n(list.keys, list.count, kept_->order_keys + at * lists_.limit);
    std::copy_n(list.indices, list.count, kept_->blocks + at * lists_.limit);
    kept_->counts[at] = static_cast<int64_t>(list.count);
  }

  const IndexerArgs& args_;
  const SelectArgs& select_;
  const IndexerItem& item_;
  const SplitCandidates* const kept_;
  const SelectScratch& lists_;
  uint8_t* const scratch_;
  Scorer<Math> scorer_;
  BlockReducer reducers_[kQueryBlock];
};

template <class Math>
void SearchItem(const IndexerArgs& args, const SelectArgs& select, const IndexerItem& item,
                const SplitCandidates* kept, const ScoreScratch& layout, const SelectScratch& lists,
                uint8_t* scratch) {
  HWY_DASSERT(item.begin < item.end);
  ItemSearch<Math>(args, select, item, kept, layout, lists, scratch).Run();
}

void FinishQuery(const IndexerArgs& args, const SelectArgs& select, int64_t token, int query,
                 int64_t item, int64_t splits, const SplitCandidates& kept,
                 const SelectScratch& lists, uint8_t* scratch) {
  ScoreList list{lists.merged_order_keys.At(scratch), lists.merged_blocks.At(scratch), 0};
  for (int64_t split = 0; split < splits; ++split) {
    const int64_t at = (item + split) * kQueryBlock + query;
    const auto count = static_cast<size_t>(kept.counts[at]);
    std::copy_n(kept.order_keys + at * lists.limit, count, list.keys + list.count);
    std::copy_n(kept.blocks + at * lists.limit, count, list.indices + list.count);
    list.count += count;
  }
  WriteAnswer(args, select, token, list, lists, scratch);
}

template <class Math>
const IndexerKernels* TableOf() {
  static constexpr IndexerKernels kTable = {Logits<Math>, SearchItem<Math>, FinishQuery, WriteAll};
  return &kTable;
}

const IndexerKernels* IndexerKernelsForTarget(Product product) {
  switch (product) {
    case Product::kInt8:
      return TableOf<Int8Scores>();
    case Product::kBF16:
#if RIFFLE_BF16_DOT
      return TableOf<BF16Scores>();
#else
      return nullptr;
#endif
    default:
      return TableOf<F32Scores>();
  }
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sparse {
HWY_EXPORT(IndexerKernelsForTarget);

bool HasBF16Product() {
  return (*core::ForTarget(HWY_DISPATCH_TABLE(IndexerKernelsForTarget)))(Product::kBF16) != nullptr;
}

const IndexerKernels& GetIndexerKernels(Product product) {
  const IndexerKernels* kernels =
      (*core::ForTarget(HWY_DISPATCH_TABLE(IndexerKernelsForTarget)))(product);
  HWY_DASSERT(kernels != nullptr);
  return *kernels;
}

}  // namespace riffle::sparse
#endif  // HWY_ONCE
