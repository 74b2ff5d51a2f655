// A work item of attention: some queries of a sequence, some KV heads, some KV splits. Included
// once per SIMD target.
#if defined(RIFFLE_ATTENTION_WORK_ITEM_RUNNER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_WORK_ITEM_RUNNER_INL_H_
#undef RIFFLE_ATTENTION_WORK_ITEM_RUNNER_INL_H_
#else
#define RIFFLE_ATTENTION_WORK_ITEM_RUNNER_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "attention/few_keys-inl.h"
#include "attention/many_tiles-inl.h"
#include "attention/results-inl.h"
#include "attention/single_tile-inl.h"
#include "attention/work_item_context-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// Which of two strategies runs a work item is decided once for it. Both give the same bits.
template <class Math>
class WorkItemRunner {
 public:
  WorkItemRunner(const AttentionArgs& args, const Plan& plan, uint8_t* scratch)
      : context_(args, plan, scratch), single_tile_(context_), many_tiles_(context_) {}

  void Run(const WorkItem& item, float* partial_states, TileCursor& ahead) {
    context_.BeginItem(item);
    if (SingleTile<Math>::Fits(context_.shape)) {
      RunSplits(single_tile_, partial_states, ahead);
    } else {
      RunSplits(many_tiles_, partial_states, ahead);
    }
  }

  // Pre: HasFewKeys of all of them.
  void RunFewKeys(const WorkItem* begin, const WorkItem* end) {
    FewKeys<Math>(context_).Run(begin, end);
  }

 private:
  template <class Strategy>
  void RunSplits(Strategy& strategy, float* partial_states, TileCursor& ahead) {
    const WorkItem& item = *context_.item;
    const WorkItemShape& shape = context_.shape;
    const WorkItemScratch<Math>& scratch = context_.scratch;
    float* to =
        partial_states + PartialStateFloats(std::max<int64_t>(item.state_row, 0), shape.columns);
    const int64_t state_floats =
        PartialStateFloats(PartialStateRows(shape.heads, shape.rows), shape.columns);
    const Splits splits = VisibleSplits();
    // A single KV split needs no merge: merging it into the empty state would change no result.
    const bool one_split = item.state_row < 0 && splits.end - splits.begin == 1;
    if (!one_split) {
      scratch.total.Clear(shape);
      std::fill_n(scratch.total.sums, int64_t{shape.heads} * shape.rows * shape.columns, 0.0f);
    }
    for (int split = splits.begin; split < splits.end; ++split) {
      if (item.merges_splits && !one_split && IsHiddenSplit(split)) {
        continue;
      }
      RunSplit(strategy, split, ahead);
      if (one_split) {
        WriteResults(scratch.split);
        return;
      }
      if (item.merges_splits) {
        MergePartialState(shape, scratch.split, scratch.total);
      } else {
        StoreState(shape, scratch.split, to);
        to += state_floats;
      }
    }
    if (item.state_row < 0) {
      WriteResults(scratch.total);
    } else if (item.merges_splits) {
      StoreState(shape, scratch.total, to);
    }
  }

  template <class Strategy>
  void RunSplit(Strategy& strategy, int split, TileCursor& ahead) {
    context_.BeginSplit(split * kKvSplit);
    ForEachBlock(split, [&](int head, int key0) {
      if (!IsHiddenBlock(head, key0)) {
        strategy.RunBlock(head, key0, ahead);
        ahead.Next();
      }
      return true;
    });
  }

  // f(head, key0) for the blocks of keys of a KV split and all heads, until it returns false.
  template <class F>
  void ForEachBlock(int split, const F& f) const {
    const int begin = std::max(context_.seen.begin, split * kKvSplit) / kBlock * kBlock;
    const int end = std::min(context_.seen.end, (split + 1) * kKvSplit);
    for (int key0 = begin; key0 < end; key0 += kBlock) {
      for (int head = 0; head < context_.shape.heads; ++head) {
        if (!f(head, key0)) {
          return;
        }
      }
    }
  }

  bool IsHiddenBlock(int head, int key0) const {
    return IsHidden(context_.args, *context_.item, context_.item->head_begin + head, key0);
  }

  // Whether the mask hides all of a KV split from the work item.
  bool IsHiddenSplit(int split) const {
    if (context_.args.mask.data == nullptr) {
      return false;
    }
    bool hidden = true;
    ForEachBlock(split, [&](int head, int key0) { return hidden = IsHiddenBlock(head, key0); });
    return hidden;
  }

  // The KV splits of the work item, at least one. Those that the mask hides are left out where they
  // would be merged: an empty state changes nothing, but clearing and merging it cost a third of a
  // prefill over a block-diagonal mask. Where each split's state is stored, all have to be.
  struct Splits {
    int begin;
    int end;
  };
  Splits VisibleSplits() const {
    Splits splits{context_.item->split_begin, context_.item->split_end};
    if (context_.item->merges_splits || context_.item->state_row < 0) {
      while (splits.end - splits.begin > 1 && IsHiddenSplit(splits.begin)) {
        ++splits.begin;
      }
      while (splits.end - splits.begin > 1 && IsHiddenSplit(splits.end - 1)) {
        --splits.end;
      }
    }
    return splits;
  }

  void WriteResults(const WorkItemState& state) const {
    const WorkItemQueries<Math>& queries = context_.queries;
    context_.shape.ForEach([&](int head, int row, int lane, int64_t sums) {
      WriteRow(context_.args, queries.Token(row), queries.Head(head, row), state.max[lane],
               state.weight[lane], state.sums + sums);
    });
  }

  WorkItemContext<Math> context_;
  SingleTile<Math> single_tile_;
  ManyTiles<Math> many_tiles_;
};

// Runs work items [begin, end).
template <class Math>
void RunItems(const AttentionArgs& args, const Plan& plan, const WorkItem* begin,
              const WorkItem* end, float* partial_states, uint8_t* scratch) {
  WorkItemRunner<Math> runner(args, plan, scratch);
  if (std::all_of(begin, end, [&](const WorkItem& item) { return HasFewKeys(args, item); })) {
    return runner.RunFewKeys(begin, end);
  }
  TileCursor ahead(args, begin, end);
  for (int i = TilesAhead(args); i > 0; --i) {
    for (int group = 0; group < 2 * kGroupsPerBlock; ++group) {
      ahead.Prefetch(group);
    }
    ahead.Next();
  }
  for (const WorkItem* item = begin; item != end; ++item) {
    runner.Run(*item, partial_states, ahead);
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
