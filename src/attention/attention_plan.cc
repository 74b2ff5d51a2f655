#include "attention/attention_plan.h"

#include <algorithm>

namespace riffle::attention {
namespace {

// Limit on the bytes of a work item's states (sums of the KV split in hand and of those before it),
// so that they stay in L2 beside keys and values.
constexpr int64_t kStateBytes = 256 << 10;

// A chunk of a lower Cost is not worth starting a thread for.
constexpr int64_t kMinChunkCost = 256 * 16;

// Chunks for each thread: more of them balance better, fewer of them cut fewer sequences.
constexpr int kChunksPerThread = 4;

// Work items of small heads have twice the rows, since their sums stay in L2 all the same: keys and
// values are packed half as often, which saves 5 % of a prefill of 512 tokens after 8192.
constexpr int kWideItemRows = 2 * kItemRows;
constexpr int kWideHeadDim = 128;

// Work items are wide only if there are this many per thread: with fewer, wide ones would have to
// be cut between KV splits, which leaves more partial states.
constexpr int64_t kWideItemsPerThread = 8;

// Queries of one sequence, some heads, and every KV split they see.
struct UncutItem {
  WorkItem item;
  KeyRange keys;
  int64_t cost;
};

// In keys times rows. A row's arithmetic on a key takes about 1/16 of the time in which memory
// delivers a head's key and value, hence the 16. Reading and packing a row's query and writing its
// result takes as long as head_dim / 8 keys: without this term 1664 rows of 192 with one key each,
// 145 us on one thread, looked like too little work for two.
int64_t Cost(int64_t keys, int heads, int rows, int head_dim) {
  return heads * (keys * std::max(16, rows) + int64_t{rows} * (head_dim / 8));
}

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
    if (!cu_q_lens_.empty() && shape_.head_dim <= kWideHeadDim) {
      item_rows_ = kWideItemRows;
      int64_t items = 0;
      ForEachUncutItem([&](const UncutItem&) { ++items; });
      if (items < threads_ * kWideItemsPerThread) {
        item_rows_ = kItemRows;
      }
    }
    int64_t total = 0;
    int64_t splits = 0;
    ForEachUncutItem([&](const UncutItem& uncut) {
      total += uncut.cost;
      splits += uncut.item.split_end - uncut.item.split_begin;
    });
    max_chunks_ = 1;
    if (threads_ > 1) {
      max_chunks_ = std::clamp<int64_t>(total / kMinChunkCost, 1, threads_ * kChunksPerThread);
    }
    // Few KV splits for many threads: cut between the heads too.
    head_splits_ = static_cast<int>(std::clamp<int64_t>(
        (max_chunks_ + splits - 1) / std::max<int64_t>(splits, 1), 1, shape_.kv_heads));
    chunk_cost_ = std::max<int64_t>(1, (total + max_chunks_ - 1) / max_chunks_);
    StartChunk();
    ForEachUncutItem([&](const UncutItem& uncut) { Place(uncut); });
    plan_.chunks = chunks_begun_;
    if (chunks_begun_ < static_cast<int64_t>(out_.chunk_begin.size())) {
      out_.chunk_begin[chunks_begun_] = plan_.items;
    }
    return plan_;
  }

 private:
  template <typename F>
  void ForEachUncutItem(const F& f) const {
    for (size_t b = 0; b < kv_lens_.size(); ++b) {
      const int q_len =
          cu_q_lens_.empty() ? 1 : static_cast<int>(cu_q_lens_[b + 1] - cu_q_lens_[b]);
      if (q_len <= 0) {
        continue;
      }
      const int queries = std::clamp(item_rows_ / shape_.group, 1, q_len);
      const int64_t head_bytes = int64_t{8} * queries * shape_.group * PaddedDim(shape_.head_dim);
      int heads = (shape_.kv_heads + head_splits_ - 1) / head_splits_;
      if (head_bytes * heads > kStateBytes) {
        heads = 1;
      }
      for (int h = 0; h < shape_.kv_heads; h += heads) {
        for (int q = 0; q < q_len; q += queries) {
          f(MakeUncutItem(static_cast<int>(b), q, std::min(q + queries, q_len), q_len, h,
                          std::min(h + heads, shape_.kv_heads)));
        }
      }
    }
  }

  UncutItem MakeUncutItem(int seq, int query_begin, int query_end, int q_len, int head_begin,
                          int head_end) const {
    UncutItem uncut{{seq, query_begin, query_end, head_begin, head_end, 0, 0, true}, {0, 0}, 0};
    const auto kv_len = static_cast<int>(kv_lens_[static_cast<size_t>(seq)]);
    if (kv_len > 0) {
      const int first = kv_len - q_len;
      const bool causal = !causal_.empty() && causal_[static_cast<size_t>(seq)] != 0;
      const AttentionShape shape = causal ? Causal(shape_) : shape_;
      uncut.keys = {VisibleKeys(shape, kv_len, first + query_begin).begin,
                    VisibleKeys(shape, kv_len, first + query_end - 1).end};
      uncut.item.split_begin = uncut.keys.begin / kKvSplit;
      uncut.item.split_end = (uncut.keys.end + kKvSplit - 1) / kKvSplit;
    }
    uncut.cost =
        std::max<int64_t>(1, Cost(uncut.keys.end - uncut.keys.begin, head_end - head_begin,
                                  (query_end - query_begin) * shape_.group, shape_.head_dim));
    return uncut;
  }

  void StartChunk() {
    if (chunks_begun_ + 1 < static_cast<int64_t>(out_.chunk_begin.size())) {
      out_.chunk_begin[chunks_begun_] = plan_.items;
    }
    ++chunks_begun_;
  }

  // Cuts an item where chunks end, unless one of the two items would be small.
  void Place(const UncutItem& uncut) {
    const int splits = uncut.item.split_end - uncut.item.split_begin;
    const int64_t split_cost = std::max<int64_t>(1, uncut.cost / std::max(splits, 1));
    int begin = uncut.item.split_begin;
    int64_t items = 0;
    int64_t first_state_row = plan_.state_rows;
    int64_t partial_states = 0;
    for (;;) {
      const int64_t left = (uncut.item.split_end - begin) * split_cost;
      const int64_t room = chunks_begun_ * chunk_cost_ - placed_cost_;
      int end = uncut.item.split_end;
      if (chunks_begun_ < max_chunks_ && left > room + chunk_cost_ / 8) {
        if (room < std::max(chunk_cost_ / 8, std::min(split_cost, chunk_cost_))) {
          placed_cost_ = std::max(placed_cost_, chunks_begun_ * chunk_cost_);
          StartChunk();
          continue;
        }
        end = std::min<int>(end, begin + std::max<int>(1, static_cast<int>(room / split_cost)));
      }
      WorkItem item = uncut.item;
      item.split_begin = begin;
      item.split_end = end;
      if (items > 0 || end < uncut.item.split_end) {
        item.merges_splits = items == 0;
        item.state_row = plan_.state_rows;
        const int64_t states = item.merges_splits ? 1 : end - begin;
        partial_states += states;
        plan_.state_rows += states * PartialStateRows(item.head_end - item.head_begin, Rows(item));
      }
      Emit(item);
      ++items;
      placed_cost_ += (end - begin) * split_cost;
      begin = end;
      if (begin >= uncut.item.split_end) {
        break;
      }
    }
    if (items > 1) {
      if (plan_.divided_items < static_cast<int64_t>(out_.divided_items.size())) {
        DividedItem divided{uncut.item, partial_states};
        divided.whole.state_row = first_state_row;
        out_.divided_items[plan_.divided_items] = divided;
      }
      ++plan_.divided_items;
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
  int item_rows_ = kItemRows;
  int head_splits_ = 1;
  int64_t max_chunks_ = 1;
  int64_t chunk_cost_ = 1;
  int64_t chunks_begun_ = 0;
  int64_t placed_cost_ = 0;
};

}  // namespace

Plan PlanAttention(const AttentionShape& shape, const IndexSpan& cu_q_lens,
                   const IndexSpan& kv_lens, int threads, const PlanOut& out,
                   std::span<const uint8_t> causal) {
  return Planner(shape, cu_q_lens, kv_lens, threads, out, causal).Run();
}

}  // namespace riffle::attention
