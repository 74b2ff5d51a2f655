#include "sparse/indexer_plan.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "select/limits.h"

namespace riffle::sparse {
namespace {

void CheckUnchanged(bool same) {
  core::Check(same, Code::kBadRange, "kv_lens or cu_q_lens changed while the call read them");
}

int64_t DivUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
std::span<T> SpanAt(core::ScratchArray<T> array, uint8_t* memory, int64_t count) {
  return {array.At(memory), static_cast<size_t>(count)};
}

}  // namespace

int64_t PlanSplits(int64_t groups, int64_t max_keys, int threads) {
  const int64_t wanted = 3 * int64_t{threads};
  if (threads == 1 || groups == 0 || groups >= wanted) {
    return 1;
  }
  return std::max<int64_t>(1, std::min(DivUp(wanted, groups), max_keys / kMinItemKeys));
}

ScoreScratch PlanScoreScratch(int heads, int operands) {
  core::ScratchLayout layout;
  ScoreScratch plan;
  constexpr int kMaxHeadGroup = 8;
  plan.query_operands =
      int64_t{(heads + kMaxHeadGroup - 1) / kMaxHeadGroup * kMaxHeadGroup} * operands;
  plan.q = layout.Place<uint32_t>(kQueryBlock * plan.query_operands);
  plan.weights = layout.Place<float>(kQueryBlock * kMaxIndexHeads);
  plan.starts = layout.Place<int32_t>(kQueryBlock * kMaxIndexHeads);
  plan.tile = layout.Place<uint32_t>(kTileKeys * operands);
  plan.rows = layout.Place<uint32_t>(kTileKeys * operands);
  plan.scales = layout.Place<float>(kTileKeys);
  plan.logits = layout.Place<float>(kTileKeys);
  plan.bytes = layout.bytes();
  return plan;
}

SelectScratch PlanSelectScratch(int64_t k, int64_t max_blocks, int64_t splits, size_t begin) {
  core::ScratchLayout layout(begin);
  SelectScratch plan;
  constexpr auto kSlack = static_cast<int64_t>(select::kSlack);
  const int64_t max_selected = std::max<int64_t>(1, std::min(k, max_blocks));
  plan.limit = max_selected + max_selected / 4 + 16;
  plan.capacity = 2 * plan.limit + 512;
  plan.stride = plan.capacity + kSlack;
  plan.order_keys = layout.Place<int32_t>(kQueryBlock * plan.stride);
  plan.blocks = layout.Place<int32_t>(kQueryBlock * plan.stride);
  plan.counts = layout.Place<int64_t>(kQueryBlock);
  plan.bounds = layout.Place<int32_t>(kQueryBlock);
  const int64_t merged = std::max(plan.capacity, splits * plan.limit);
  plan.pairs = layout.Place<uint64_t>(2 * merged);
  plan.merged_order_keys = layout.Place<int32_t>(splits > 1 ? merged + kSlack : 0);
  plan.merged_blocks = layout.Place<int32_t>(splits > 1 ? merged + kSlack : 0);
  plan.bytes = layout.bytes();
  return plan;
}

IndexPlanner::IndexPlanner(const PagedBatch& batch, const IndexKeys& keys, int64_t tokens,
                           int64_t ratio)
    : batch_(batch),
      page_size_(keys.page_size),
      num_pages_(keys.num_pages),
      ratio_(ratio),
      tokens_(tokens) {
  int64_t begin = 0;
  for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
    const int64_t end = QueryEnd(b);
    const int64_t kv_len = batch.kv_lens[b];
    groups_ += DivUp(end - begin, kQueryBlock);
    pages_ += NumPages(kv_len);
    max_len_ = std::max(max_len_, kv_len);
    max_keys_ = std::max(max_keys_, end > begin ? kv_len / ratio : 0);
    begin = end;
  }
  PlaceArrays(static_cast<int64_t>(batch.kv_lens.size()));
}

IndexPlanner::IndexPlanner(std::span<const int32_t> starts, std::span<const int32_t> ends)
    : starts_(starts),
      ends_(ends),
      has_ranges_(true),
      tokens_(static_cast<int64_t>(starts.size())) {
  for (size_t t = 0; t < starts.size(); ++t) {
    max_keys_ = std::max<int64_t>(max_keys_, int64_t{ends[t]} - starts[t]);
  }
  groups_ = DivUp(tokens_, kQueryBlock);
  pages_ = 1;
  PlaceArrays(1);
}

void IndexPlanner::PlaceArrays(int64_t sequences) {
  sequences_ = sequences;
  ranges_at_ = layout_.Place<QueryRange>(tokens_);
  groups_at_ = layout_.Place<QueryGroup>(groups_);
  pages_at_ = layout_.Place<int32_t>(pages_);
  begin_at_ = layout_.Place<int64_t>(sequences);
}

int64_t IndexPlanner::QueryEnd(size_t b) const {
  return batch_.cu_q_lens.empty() ? static_cast<int64_t>(b) + 1 : batch_.cu_q_lens[b + 1];
}

int64_t IndexPlanner::NumPages(int64_t kv_len) const { return DivUp(kv_len / ratio_, page_size_); }

PlannedIndex IndexPlanner::Place(uint8_t* memory) const {
  const PlannedIndex plan = {SpanAt(ranges_at_, memory, tokens_),
                             SpanAt(groups_at_, memory, groups_), SpanAt(pages_at_, memory, pages_),
                             SpanAt(begin_at_, memory, sequences_)};
  if (has_ranges_) {
    CopyRanges(plan);
  } else {
    CopyBatch(plan);
  }
  return plan;
}

void IndexPlanner::CopyRanges(const PlannedIndex& to) const {
  to.page_numbers[0] = 0;
  to.page_begin[0] = 0;
  for (size_t t = 0; t < to.ranges.size(); ++t) {
    const int32_t start = starts_[t];
    const int32_t end = ends_[t];
    CheckUnchanged(start >= 0 && end - int64_t{start} <= max_keys_);
    to.ranges[t] = {0, start, std::max(start, end)};
  }
  for (size_t g = 0; g < to.groups.size(); ++g) {
    const auto begin = static_cast<int64_t>(g) * kQueryBlock;
    to.groups[g] = {static_cast<int32_t>(begin),
                    static_cast<int32_t>(std::min(tokens_, begin + kQueryBlock))};
  }
}

void IndexPlanner::CopyBatch(const PlannedIndex& to) const {
  size_t group = 0;
  int64_t page_at = 0;
  int64_t begin = 0;
  for (size_t b = 0; b < to.page_begin.size(); ++b) {
    const int64_t end = QueryEnd(b);
    const int64_t kv_len = batch_.kv_lens[b];
    CheckUnchanged(begin <= end && end <= tokens_ && kv_len >= 0 && kv_len <= max_len_);
    const int64_t pages = NumPages(kv_len);
    CheckUnchanged(pages <= pages_ - page_at &&
                   DivUp(end - begin, kQueryBlock) <= groups_ - static_cast<int64_t>(group));
    to.page_begin[b] = page_at;
    for (int64_t i = 0; i < pages; ++i) {
      const int64_t page =
          batch_.page_table[static_cast<int64_t>(b) * batch_.page_table_stride + i];
      core::Check(page >= 0 && page < num_pages_, Code::kBadPage, "page_table[", b, ",", i,
                  "] = ", page, " but the pool has ", num_pages_, " pages");
      to.page_numbers[static_cast<size_t>(page_at++)] = static_cast<int32_t>(page);
    }
    for (int64_t token = begin; token < end; ++token) {
      const int64_t keys = VisibleKeys(kv_len - end + token, ratio_);
      to.ranges[static_cast<size_t>(token)] = {static_cast<int32_t>(b), 0,
                                               static_cast<int32_t>(keys)};
      if ((token - begin) % kQueryBlock == 0) {
        to.groups[group++] = {static_cast<int32_t>(token),
                              static_cast<int32_t>(std::min(end, token + kQueryBlock))};
      }
    }
    begin = end;
  }
  CheckUnchanged(begin == tokens_ && static_cast<int64_t>(group) == groups_);
}

namespace {

IndexerItem MakeItem(const PlannedIndex& plan, const QueryGroup& group, int64_t index,
                     int64_t splits, int64_t block) {
  int64_t begin = std::numeric_limits<int32_t>::max();
  int64_t end = 0;
  for (int32_t token = group.begin; token < group.end; ++token) {
    const QueryRange& range = plan.ranges[static_cast<size_t>(token)];
    if (range.begin < range.end) {
      begin = std::min<int64_t>(begin, range.begin);
      end = std::max<int64_t>(end, range.end);
    }
  }
  IndexerItem item{group, 0, 0, index};
  if (begin < end) {
    const int64_t unit = block * DivUp(kTileKeys, block);
    const int64_t chunk = DivUp(DivUp(end - begin, splits), unit) * unit;
    const int64_t from = std::min(end, begin + index % splits * chunk);
    item.begin = static_cast<int32_t>(from);
    item.end = static_cast<int32_t>(std::min(end, from + chunk));
  }
  return item;
}

}  // namespace

IndexerItem ItemOf(const PlannedIndex& plan, int64_t index, int64_t splits, int64_t block) {
  return MakeItem(plan, plan.groups[static_cast<size_t>(index / splits)], index, splits, block);
}

IndexerItem ItemOfToken(const PlannedIndex& plan, int64_t index, int64_t splits, int64_t block) {
  const auto token = static_cast<int32_t>(index / splits);
  return MakeItem(plan, {token, token + 1}, index, splits, block);
}

}  // namespace riffle::sparse
