#include "attention/attention_plan.h"

#include <algorithm>

namespace riffle::attention {
namespace {

// States of a work item (sums of a span and of all spans) that stay in L2 beside keys and values.
constexpr int64_t kStateBytes = 256 << 10;

// A share is not worth a thread's start below this many work items of Cost.
constexpr int64_t kMinShareCost = 256 * 16;

// Shares of a thread: more balance better, fewer leave fewer cuts.
constexpr int kSharesPerThread = 4;

// Queries of one sequence, some heads, every span they see.
struct Column {
  WorkItem item;
  KeyRange keys;
  int64_t cost;
};

// In keys times rows. A row's arithmetic against a key costs about 1/16 of the time that memory
// needs to bring the key and the value of a head.
int64_t Cost(int64_t keys, int heads, int rows) { return keys * heads * std::max(16, rows); }

class Planner {
 public:
  Planner(const AttentionShape& shape, const IndexSpan& cu_q_lens, const IndexSpan& kv_lens,
          int threads, const PlanOut& out, std::span<const uint8_t> causal)
      : shape_(shape),
        cu_q_lens_(cu_q_lens),
        kv_lens_(kv_lens),
        causal_(causal),
        threads_(threads),
        out_(out) {}

  Plan Run() {
    int64_t total = 0;
    int64_t spans = 0;
    ForEachColumn([&](const Column& column) {
      total += column.cost;
      spans += column.item.span_end - column.item.span_begin;
    });
    shares_ = 1;
    if (threads_ > 1) {
      shares_ = std::clamp<int64_t>(total / kMinShareCost, 1, threads_ * kSharesPerThread);
    }
    // Few spans for many threads: cut between the heads too.
    head_splits_ = static_cast<int>(std::clamp<int64_t>(
        (shares_ + spans - 1) / std::max<int64_t>(spans, 1), 1, shape_.kv_heads));
    share_cost_ = std::max<int64_t>(1, (total + shares_ - 1) / shares_);
    StartShare();
    ForEachColumn([&](const Column& column) { Place(column); });
    plan_.shares = share_;
    if (share_ < static_cast<int64_t>(out_.share_begin.size())) {
      out_.share_begin[share_] = plan_.items;
    }
    return plan_;
  }

 private:
  template <typename F>
  void ForEachColumn(const F& f) const {
    for (size_t b = 0; b < kv_lens_.size(); ++b) {
      const int q_len =
          cu_q_lens_.empty() ? 1 : static_cast<int>(cu_q_lens_[b + 1] - cu_q_lens_[b]);
      if (q_len <= 0) {
        continue;
      }
      const int queries = std::clamp(kItemRows / shape_.group, 1, q_len);
      const int64_t head_bytes = int64_t{8} * queries * shape_.group * PaddedDim(shape_.head_dim);
      int heads = (shape_.kv_heads + head_splits_ - 1) / head_splits_;
      if (head_bytes * heads > kStateBytes) {
        heads = 1;
      }
      for (int h = 0; h < shape_.kv_heads; h += heads) {
        for (int q = 0; q < q_len; q += queries) {
          f(MakeColumn(static_cast<int>(b), q, std::min(q + queries, q_len), q_len, h,
                       std::min(h + heads, shape_.kv_heads)));
        }
      }
    }
  }

  Column MakeColumn(int seq, int query_begin, int query_end, int q_len, int head_begin,
                    int head_end) const {
    Column column{{seq, query_begin, query_end, head_begin, head_end, 0, 0, true}, {0, 0}, 0};
    const auto kv_len = static_cast<int>(kv_lens_[static_cast<size_t>(seq)]);
    if (kv_len > 0) {
      const int first = kv_len - q_len;
      const bool causal = !causal_.empty() && causal_[static_cast<size_t>(seq)] != 0;
      const AttentionShape shape = causal ? Causal(shape_) : shape_;
      column.keys = {Visible(shape, kv_len, first + query_begin).begin,
                     Visible(shape, kv_len, first + query_end - 1).end};
      column.item.span_begin = column.keys.begin / kKvSplit;
      column.item.span_end = (column.keys.end + kKvSplit - 1) / kKvSplit;
    }
    column.cost =
        std::max<int64_t>(1, Cost(column.keys.end - column.keys.begin, head_end - head_begin,
                                  (query_end - query_begin) * shape_.group));
    return column;
  }

  void StartShare() {
    if (share_ + 1 < static_cast<int64_t>(out_.share_begin.size())) {
      out_.share_begin[share_] = plan_.items;
    }
    ++share_;
  }

  // Cuts a column where shares end, unless one of the two pieces would be small.
  void Place(const Column& column) {
    const int spans = column.item.span_end - column.item.span_begin;
    const int64_t span_cost = std::max<int64_t>(1, column.cost / std::max(spans, 1));
    int begin = column.item.span_begin;
    int64_t pieces = 0;
    int64_t first_slot = plan_.state_rows;
    int64_t partial_states = 0;
    for (;;) {
      const int64_t left = (column.item.span_end - begin) * span_cost;
      const int64_t room = share_ * share_cost_ - used_;
      int end = column.item.span_end;
      if (share_ < shares_ && left > room + share_cost_ / 8) {
        if (room < std::max(share_cost_ / 8, std::min(span_cost, share_cost_))) {
          used_ = std::max(used_, share_ * share_cost_);
          StartShare();
          continue;
        }
        end = std::min<int>(end, begin + std::max<int>(1, static_cast<int>(room / span_cost)));
      }
      WorkItem item = column.item;
      item.span_begin = begin;
      item.span_end = end;
      if (pieces > 0 || end < column.item.span_end) {
        item.merges = pieces == 0;
        item.slot = plan_.state_rows;
        const int64_t states = item.merges ? 1 : end - begin;
        partial_states += states;
        plan_.state_rows += states * PartialStateRows(item.head_end - item.head_begin, Rows(item));
      }
      Emit(item);
      ++pieces;
      used_ += (end - begin) * span_cost;
      begin = end;
      if (begin >= column.item.span_end) {
        break;
      }
    }
    if (pieces > 1) {
      if (plan_.splits < static_cast<int64_t>(out_.splits.size())) {
        KvSplit split{column.item, partial_states};
        split.whole.slot = first_slot;
        out_.splits[plan_.splits] = split;
      }
      ++plan_.splits;
    }
  }

  int Rows(const WorkItem& item) const {
    return (item.query_end - item.query_begin) * shape_.group;
  }

  void Emit(const WorkItem& item) {
    if (plan_.items < static_cast<int64_t>(out_.items.size())) {
      out_.items[plan_.items] = item;
    }
    ++plan_.items;
    const int heads = item.head_end - item.head_begin;
    plan_.max_rows = std::max(plan_.max_rows, Rows(item));
    plan_.max_head_rows = std::max(plan_.max_head_rows, heads * Rows(item));
    plan_.max_head_lanes = std::max(plan_.max_head_lanes, heads * WorkItemLanes(Rows(item)));
  }

  const AttentionShape& shape_;
  const IndexSpan& cu_q_lens_;
  const IndexSpan& kv_lens_;
  std::span<const uint8_t> causal_;
  int threads_;
  const PlanOut& out_;
  Plan plan_;
  int head_splits_ = 1;
  int64_t shares_ = 1;
  int64_t share_cost_ = 1;
  int64_t share_ = 0;  // shares begun
  int64_t used_ = 0;   // cost placed
};

}  // namespace

Plan PlanAttention(const AttentionShape& shape, const IndexSpan& cu_q_lens,
                   const IndexSpan& kv_lens, int threads, const PlanOut& out,
                   std::span<const uint8_t> causal) {
  return Planner(shape, cu_q_lens, kv_lens, threads, out, causal).Run();
}

}  // namespace riffle::attention
