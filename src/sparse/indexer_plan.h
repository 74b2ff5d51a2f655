// How a call of the indexer is cut into work items, and its copy of the batch.
#pragma once

#include <cstdint>
#include <span>

#include "core/scratch_layout.h"
#include "riffle/indexer.h"
#include "sparse/indexer_args.h"

namespace riffle::sparse {

// The number of parts that the keys of each group of queries are cut into, so that `threads` have
// about three items each; 1 if there are enough groups. Parts have at least kMinItemKeys keys.
inline constexpr int64_t kMinItemKeys = 1024;
int64_t PlanSplits(int64_t groups, int64_t max_keys, int threads);

// The number of keys that a query at `position`, which may be negative, sees.
constexpr int64_t VisibleKeys(int64_t position, int64_t ratio) {
  return position < 0 ? 0 : (position + 1) / ratio;
}

// The batch of a call, copied and checked, in the order of its tokens.
struct PlannedIndex {
  std::span<QueryRange> ranges;  // [tokens]
  std::span<QueryGroup> groups;
  std::span<int32_t> page_numbers;
  std::span<int64_t> page_begin;  // [B]
};

// Measures a batch, then copies it into the caller's memory. The batch may change in between; Place
// detects that.
class IndexPlanner {
 public:
  // Plans paged keys. Pre: CheckIndexBatch.
  IndexPlanner(const PagedBatch& batch, const IndexKeys& keys, int64_t tokens, int64_t ratio);
  // Plans ranges over one matrix of keys. Pre: CheckRanges.
  IndexPlanner(std::span<const int32_t> starts, std::span<const int32_t> ends);

  int64_t groups() const { return groups_; }
  int64_t max_keys() const { return max_keys_; }  // that a query sees
  size_t bytes() const { return layout_.bytes(); }

  // Throws Error(kBadPage), and kBadRange where lengths have changed.
  PlannedIndex Place(uint8_t* memory) const;

 private:
  void PlaceArrays(int64_t sequences);
  void CopyBatch(const PlannedIndex& to) const;
  void CopyRanges(const PlannedIndex& to) const;
  int64_t QueryEnd(size_t b) const;
  int64_t NumPages(int64_t kv_len) const;

  PagedBatch batch_;
  int64_t page_size_ = 1;
  int64_t num_pages_ = 1;
  int64_t ratio_ = 1;
  std::span<const int32_t> starts_, ends_;
  bool has_ranges_ = false;
  int64_t tokens_ = 0;
  int64_t groups_ = 0;
  int64_t pages_ = 0;
  int64_t max_keys_ = 0;
  int64_t max_len_ = 0;
  int64_t sequences_ = 0;
  core::ScratchLayout layout_;
  core::ScratchArray<QueryRange> ranges_at_;
  core::ScratchArray<QueryGroup> groups_at_;
  core::ScratchArray<int32_t> pages_at_;
  core::ScratchArray<int64_t> begin_at_;
};

// Item `index` of groups x splits: a part of the keys that any query of the group sees, in whole
// blocks of `block` keys. Items may be empty.
IndexerItem ItemOf(const PlannedIndex& plan, int64_t index, int64_t splits, int64_t block);
// The same where every query is a group of its own.
IndexerItem ItemOfToken(const PlannedIndex& plan, int64_t index, int64_t splits, int64_t block);

}  // namespace riffle::sparse
