#include "attention/attention_batch.h"

#include <algorithm>
#include <limits>

#include "attention/attention_check.h"
#include "attention/mask.h"
#include "core/check.h"
#include "core/scratch_layout.h"

namespace riffle::attention {
namespace {

size_t PagesOf(int64_t kv_len, const PagedKv& keys) {
  return kv_len == 0 ? 0 : static_cast<size_t>((kv_len - 1) / keys.page_size + 1);
}

// Places the arrays of `to` in a block of memory, or only counts their bytes if `memory` is null.
size_t PlaceArrays(const PagedBatch& batch, size_t pages, size_t mask_codes, const Plan& plan,
                   uint8_t* memory, PlannedBatch* to) {
  core::ScratchLayout layout;
  const auto place = [&]<typename T>(size_t count, std::span<T>* array) {
    const core::ScratchArray<T> placed = layout.Place<T>(static_cast<int64_t>(count));
    if (memory != nullptr) {
      *array = {placed.At(memory), count};
    }
  };
  place(batch.kv_lens.size(), &to->kv_lens);
  place(batch.cu_q_lens.size(), &to->cu_q_lens);
  place(batch.causal.size(), &to->causal);
  place(batch.kv_lens.size(), &to->page_begin);
  place(pages, &to->page_numbers);
  place(mask_codes, &to->mask_codes);
  place(static_cast<size_t>(plan.items), &to->out.items);
  place(static_cast<size_t>(plan.divided_items), &to->out.divided_items);
  place(static_cast<size_t>(plan.chunks) + 1, &to->out.chunk_begin);
  return layout.bytes();
}

void CheckUnchanged(bool same) {
  core::Check(same, Code::kBadRange, "kv_lens or cu_q_lens changed while the call read them");
}

void CopyLengths(const IndexSpan& from, std::span<int32_t> to) {
  for (size_t i = 0; i < to.size(); ++i) {
    const int64_t length = from[i];
    CheckUnchanged(length >= 0 && length <= std::numeric_limits<int32_t>::max());
    to[i] = static_cast<int32_t>(length);
  }
}

}  // namespace

BatchPlanner::BatchPlanner(const AttentionShape& shape, const PagedKv& keys,
                           const PagedBatch& batch, int64_t tokens, const AttentionOptions& options,
                           int threads)
    : shape_(shape),
      keys_(keys),
      batch_(batch),
      tokens_(tokens),
      options_(options),
      threads_(threads),
      plan_(PlanAttention(shape, batch.cu_q_lens, batch.kv_lens, threads, {}, batch.causal)) {
  for (size_t b = 0; b < batch.kv_lens.size(); ++b) {
    pages_ += PagesOf(batch.kv_lens[b], keys);
    longest_ = std::max<int64_t>(longest_, batch.kv_lens[b]);
  }
  mask_codes_ = MaskCodeCount(options.mask, longest_);
  PlannedBatch unplaced;
  bytes_ = PlaceArrays(batch, pages_, mask_codes_, plan_, nullptr, &unplaced);
}

void BatchPlanner::Copy(const PlannedBatch& to) const {
  CopyLengths(batch_.kv_lens, to.kv_lens);
  CopyLengths(batch_.cu_q_lens, to.cu_q_lens);
  std::copy(batch_.causal.begin(), batch_.causal.end(), to.causal.begin());
  PagedBatch copy = batch_;
  copy.kv_lens = std::span<const int32_t>(to.kv_lens);
  copy.cu_q_lens = std::span<const int32_t>(to.cu_q_lens);
  copy.causal = to.causal;
  CheckLengths(copy, keys_, tokens_, options_);
  size_t at = 0;
  for (size_t b = 0; b < to.kv_lens.size(); ++b) {
    to.page_begin[b] = static_cast<int64_t>(at);
    const auto pages = static_cast<int64_t>(PagesOf(to.kv_lens[b], keys_));
    CheckUnchanged(at + static_cast<size_t>(pages) <= to.page_numbers.size());
    const int64_t row = static_cast<int64_t>(b) * batch_.page_table_stride;
    for (int64_t i = 0; i < pages; ++i) {
      const int64_t page = batch_.page_table[row + i];
      core::Check(page >= 0 && page < keys_.num_pages, Code::kBadPage, "page_table[", b, ", ", i,
                  "] = ", page, " but the pool has ", keys_.num_pages, " pages");
      to.page_numbers[at++] = static_cast<int32_t>(page);
    }
  }
}

PlannedBatch BatchPlanner::Place(uint8_t* memory, core::Lease& lease) const {
  PlannedBatch planned;
  PlaceArrays(batch_, pages_, mask_codes_, plan_, memory, &planned);
  Copy(planned);
  planned.plan = PlanAttention(shape_, std::span<const int32_t>(planned.cu_q_lens),
                               std::span<const int32_t>(planned.kv_lens), threads_, planned.out,
                               planned.causal);
  CheckUnchanged(
      planned.plan.items == plan_.items && planned.plan.divided_items == plan_.divided_items &&
      planned.plan.chunks == plan_.chunks && planned.plan.state_rows == plan_.state_rows);
  for (const int32_t kv_len : planned.kv_lens) {
    CheckUnchanged(kv_len <= longest_);
  }
  planned.mask = FindMaskCodes(options_.mask, longest_, planned.mask_codes, lease);
  return planned;
}

}  // namespace riffle::attention
