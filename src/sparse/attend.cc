// The entry point of sparse attention: check, sort, plan, run. The arithmetic is PagedAttention's:
// the rows that a query names, in canonical order, are the keys of a sequence of its own, so both
// give the same bits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention_kernels.h"
#include "attention/attention_plan.h"
#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/scratch_layout.h"
#include "core/strided.h"
#include "core/targets.h"
#include "riffle/sparse_attention.h"
#include "sparse/attend_check.h"
#include "sparse/attend_kernels.h"
#include "sparse/indexer_kernels.h"
#include "sparse/row_pages.h"
#include "sparse/sort_slots.h"

namespace riffle {
namespace {

using attention::AttentionArgs;
using attention::WorkItem;

int64_t NamedCols(std::span<const SparseScope> scopes) {
  int64_t cols = 0;
  for (const SparseScope& scope : scopes) {
    cols += scope.cols;
  }
  return cols;
}

int64_t NumSlots(const SparseScope& scope, int64_t token) {
  return scope.lengths == nullptr ? scope.cols
                                  : std::clamp<int64_t>(scope.lengths[token], 0, scope.cols);
}

int64_t CountNamed(std::span<const SparseScope> scopes, int64_t token) {
  int64_t named = 0;
  for (const SparseScope& scope : scopes) {
    const int32_t* slots = scope.slots + token * scope.slots_stride;
    named += std::count_if(slots, slots + NumSlots(scope, token),
                           [&](int32_t slot) { return slot >= 0 && slot < scope.rows.slots; });
  }
  return named;
}

// The memory that all threads share.
struct SharedLayout {
  core::ScratchArray<int32_t> lens;    // [tokens] rows that the query names
  core::ScratchArray<int32_t> counts;  // [tokens][scopes] how many of these are in each scope
  core::ScratchArray<int32_t> slots;   // [tokens][named columns], sorted
  core::ScratchArray<WorkItem> items;
  core::ScratchArray<attention::DividedItem> divided_items;
  core::ScratchArray<int64_t> chunk_begin;
  core::ScratchArray<float> states;
  size_t bytes = 0;

  SharedLayout(int64_t tokens, std::span<const SparseScope> scopes, const attention::Plan& plan,
               int value_dim) {
    core::ScratchLayout layout;
    lens = layout.Place<int32_t>(tokens);
    counts = layout.Place<int32_t>(tokens * static_cast<int64_t>(scopes.size()));
    slots = layout.Place<int32_t>(tokens * NamedCols(scopes));
    items = layout.Place<WorkItem>(plan.items);
    divided_items = layout.Place<attention::DividedItem>(plan.divided_items);
    chunk_begin = layout.Place<int64_t>(plan.chunks + 1);
    states = layout.Place<float>(
        attention::PartialStateFloats(plan.state_rows, attention::PaddedDim(value_dim)));
    bytes = layout.bytes();
  }
};

class SparseAttentionCall {
 public:
  SparseAttentionCall(const HeadsView& q, std::span<const SparseScope> scopes,
                      const AttentionOut& out, const SparseAttentionOptions& options)
      : q_(q),
        scopes_(scopes),
        options_(options),
        value_dim_(static_cast<int>(options.value_dim != 0 ? options.value_dim : q.head_dim)),
        read_(sparse::ChooseRowAccess(scopes)),
        lease_(options.pool) {
    MakeArgs(out);
  }

  void Run() {
    Plan();
    ReserveItems();
    const int64_t* chunk_begin = layout_->chunk_begin.At(memory_);
    const WorkItem* items = layout_->items.At(memory_);
    const attention::RunItemsKernel run_items = attention::ChooseRunItems(args_);
    lease_.Run(plan_.chunks, [&](int64_t chunk, uint8_t* scratch) {
      for (int64_t i = chunk_begin[chunk]; i < chunk_begin[chunk + 1]; ++i) {
        RunItem(run_items, items[i], scratch);
      }
    });
    const attention::AttentionKernels& kernels = attention::GetAttentionKernels();
    const int64_t heads = args_.shape.kv_heads;
    lease_.Run(plan_.divided_items * heads, [&](int64_t i, uint8_t*) {
      const attention::DividedItem& divided = layout_->divided_items.At(memory_)[i / heads];
      const auto head = static_cast<int>(i % heads);
      if (head < divided.whole.head_end - divided.whole.head_begin) {
        kernels.merge_divided_item(args_, divided, head, layout_->states.At(memory_));
      }
    });
  }

 private:
  void MakeArgs(const AttentionOut& out) {
    const auto element = static_cast<int64_t>(SizeOf(q_.dtype));
    args_.q = static_cast<const uint8_t*>(q_.data);
    args_.q_dtype = q_.dtype;
    args_.q_token_stride = core::SaturatingMul(q_.token_stride, element);
    args_.q_head_stride = core::SaturatingMul(q_.head_stride, element);
    args_.keys = MakePages(static_cast<int>(q_.head_dim));
    args_.values = MakePages(value_dim_);
    args_.values_in_keys = true;
    args_.page_size = 1;
    args_.scale = options_.scale.value_or(
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(q_.head_dim))));
    args_.sinks = options_.sinks.empty() ? nullptr : options_.sinks.data();
    args_.lse_without_sinks = !options_.lse_with_sinks;
    args_.out = static_cast<uint8_t*>(out.data);
    args_.out_token_stride = core::SaturatingMul(out.token_stride, element);
    args_.out_head_stride = core::SaturatingMul(out.head_stride, element);
    args_.lse = out.lse;
    args_.lse_token_stride = out.lse_token_stride;
    args_.shape = {1, static_cast<int>(q_.heads), static_cast<int>(q_.head_dim), 0, -1};
  }

  // The first `dim` elements of rows, as kernels read them.
  attention::KvPages MakePages(int dim) const {
    const SparseRows& rows = scopes_[0].rows;
    switch (read_) {
      case sparse::RowAccess::kInPlace:
        return sparse::PagesInPlace(rows, dim);
      case sparse::RowAccess::kCopied:
        return sparse::PagesOfCopies(rows, dim);
      default:
        return sparse::PagesOfDecoded(DecodedDType(), q_.head_dim, dim);
    }
  }

  // bf16 where PagedAttention would multiply bf16; else f32, so that no digit of a row is lost.
  DType DecodedDType() const {
    const bool rows = std::all_of(scopes_.begin(), scopes_.end(), [](const SparseScope& scope) {
      return scope.rows.dtype == DType::kBF16 || scope.rows.format != SparseRowFormat::kPlain;
    });
    return rows && q_.dtype == DType::kBF16 && sparse::HasBF16Product() ? DType::kBF16
                                                                        : DType::kF32;
  }

  // Sorts slots and divides the work; the sizes of both are counted first.
  void Plan() {
    memory_ = lease_.Shared(static_cast<size_t>(q_.tokens) * sizeof(int32_t));
    auto* lens = reinterpret_cast<int32_t*>(memory_);
    for (int64_t t = 0; t < q_.tokens; ++t) {
      lens[t] = static_cast<int32_t>(CountNamed(scopes_, t));
    }
    const auto tokens = static_cast<size_t>(q_.tokens);
    plan_ = attention::PlanAttention(args_.shape, {}, std::span<const int32_t>(lens, tokens),
                                     lease_.threads(), {});
    layout_.emplace(q_.tokens, scopes_, plan_, value_dim_);
    memory_ = lease_.Shared(layout_->bytes);
    Sort();
    args_.kv_lens = layout_->lens.At(memory_);
    const attention::PlanOut out = {
        {layout_->items.At(memory_), static_cast<size_t>(plan_.items)},
        {layout_->divided_items.At(memory_), static_cast<size_t>(plan_.divided_items)},
        {layout_->chunk_begin.At(memory_), static_cast<size_t>(plan_.chunks) + 1}};
    const attention::Plan placed = attention::PlanAttention(
        args_.shape, {}, std::span<const int32_t>(args_.kv_lens, tokens), lease_.threads(), out);
    core::Check(placed.items == plan_.items && placed.divided_items == plan_.divided_items &&
                    placed.chunks == plan_.chunks && placed.state_rows == plan_.state_rows,
                Code::kBadRange, "slots or lengths changed while the call read them");
  }

  void Sort() {
    int64_t widest = 0;
    for (const SparseScope& scope : scopes_) {
      widest = std::max(widest, scope.cols);
    }
    lease_.ReserveScratch(static_cast<size_t>(widest) * sizeof(int32_t));
    const auto scopes = static_cast<int64_t>(scopes_.size());
    lease_.Run(q_.tokens, [&](int64_t token, uint8_t* scratch) {
      int32_t* slots = Slots(token);
      int64_t named = 0;
      for (size_t s = 0; s < scopes_.size(); ++s) {
        const SparseScope& scope = scopes_[s];
        const int64_t count = sparse::SortSlots(
            {scope.slots + token * scope.slots_stride, static_cast<size_t>(NumSlots(scope, token))},
            scope.rows.slots, slots + named, reinterpret_cast<int32_t*>(scratch));
        layout_->counts.At(memory_)[token * scopes + static_cast<int64_t>(s)] =
            static_cast<int32_t>(count);
        named += count;
      }
      layout_->lens.At(memory_)[token] = static_cast<int32_t>(named);
    });
  }

  int32_t* Slots(int64_t token) const {
    return layout_->slots.At(memory_) + token * NamedCols(scopes_);
  }

  // Reserves the threads' scratch: the kernels' first, then room for gathered rows and scales.
  void ReserveItems() {
    int64_t rows = 0;
    for (int64_t i = 0; i < plan_.items && read_ != sparse::RowAccess::kInPlace; ++i) {
      const WorkItem& item = layout_->items.At(memory_)[i];
      rows = std::max<int64_t>(rows, NumRows(item));
    }
    const size_t kernel =
        (attention::GetAttentionKernels().scratch_bytes(args_, plan_) + 63) / 64 * 64;
    core::ScratchLayout layout(kernel);
    // Rows are decoded kGatherRows at a time, which may write past the last one.
    const int64_t room = rows == 0 ? 0 : rows + sparse::kGatherRows - 1;
    rows_ = layout.Place<uint8_t>(room * args_.keys.token_stride);
    scales_ = layout.Place<uint8_t>(rows * sparse::CopiedScaleBytes(args_.keys));
    lease_.ReserveScratch(layout.bytes());
  }

  static int64_t FirstRow(const WorkItem& item) {
    return int64_t{item.split_begin} * attention::kKvSplit;
  }
  int64_t NumRows(const WorkItem& item) const {
    const int64_t end =
        std::min<int64_t>(args_.kv_lens[item.seq], int64_t{item.split_end} * attention::kKvSplit);
    return std::max<int64_t>(0, end - FirstRow(item));
  }

  // Runs an item as if its rows were the whole sequence.
  void RunItem(attention::RunItemsKernel run_items, const WorkItem& item, uint8_t* scratch) const {
    AttentionArgs args = args_;
    const int64_t token = item.seq;
    args.q += token * args.q_token_stride;
    args.out += token * args.out_token_stride;
    args.lse = args.lse != nullptr ? args.lse + token * args.lse_token_stride : nullptr;
    const auto len = static_cast<int32_t>(NumRows(item));
    const int64_t page_begin = 0;
    const int32_t page = 0;
    args.kv_lens = &len;
    args.page_begin = &page_begin;
    if (read_ == sparse::RowAccess::kInPlace) {
      args.page_numbers = Slots(token) + FirstRow(item);
    } else {
      Gather(token, FirstRow(item), FirstRow(item) + len, scratch);
      args.page_numbers = &page;
      args.page_size = std::numeric_limits<int32_t>::max();
      args.page_shift = -1;
      for (attention::KvPages* pages : {&args.keys, &args.values}) {
        sparse::PlaceRows(rows_.At(scratch), scales_.At(scratch), pages);
      }
    }
    WorkItem alone = item;
    alone.seq = 0;
    alone.split_begin = 0;
    alone.split_end = item.split_end - item.split_begin;
    run_items(args, plan_, &alone, &alone + 1, layout_->states.At(memory_), scratch);
  }

  // Gathers rows [begin, end) of those that a query names into the scratch.
  void Gather(int64_t token, int64_t begin, int64_t end, uint8_t* scratch) const {
    const int32_t* slots = Slots(token);
    const int32_t* counts =
        layout_->counts.At(memory_) + token * static_cast<int64_t>(scopes_.size());
    if (read_ == sparse::RowAccess::kCopied) {
      sparse::CopyRows(scopes_, slots, counts, begin, end, args_.keys, rows_.At(scratch),
                       scales_.At(scratch));
    } else {
      sparse::GetGatherKernels().gather(scopes_, slots, counts, begin, end, DecodedDType(),
                                        rows_.At(scratch));
    }
  }

  const HeadsView& q_;
  const std::span<const SparseScope> scopes_;
  const SparseAttentionOptions& options_;
  const int value_dim_;
  const sparse::RowAccess read_;
  core::Lease lease_;
  AttentionArgs args_{};
  attention::Plan plan_;
  std::optional<SharedLayout> layout_;
  uint8_t* memory_ = nullptr;
  core::ScratchArray<uint8_t> rows_;    // copied or decoded, in a thread's scratch
  core::ScratchArray<uint8_t> scales_;  // of copied rows
};

}  // namespace

void SparseAttention(const HeadsView& q, std::span<const SparseScope> scopes,
                     const AttentionOut& out, const SparseAttentionOptions& options) try {
  const core::EntryPoint entry;
  sparse::CheckSparseAttention(q, scopes, out, options);
  core::EnsureTarget();
  if (q.tokens > 0) {
    SparseAttentionCall(q, scopes, out, options).Run();
  }
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
