#include "riffle/kv_cache.h"

#include <hwy/base.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/targets.h"
#include "kv_cache/layout.h"
#include "kv_cache/page_pool.h"
#include "kv_cache/round_kernels.h"
#include "kv_cache/storage.h"

namespace riffle {
namespace {

constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max();  // kv_lens are int32

// Bytes of pages from which on threads pay, and what a thread writes at once, made up to whole
// pages: tasks that ended inside of pages took 20 ms for two layers of 16384 tokens of 8 heads of
// 128 where these take 13 (f32 to f16, two threads; 22 on one).
constexpr int64_t kThreadsBytes = 256 * 1024;
constexpr int64_t kTaskBytes = 64 * 1024;

struct Sequence {
  std::vector<int32_t> pages;  // ceil(length / page_size)
  int64_t length = 0;
};

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// The same as RoundTokens where nothing is to be rounded; rows of `bytes` bytes.
void CopyTokens(const kv_cache::RoundTask& task, int64_t bytes) {
  for (int64_t token = 0; token < task.tokens; ++token) {
    for (int64_t head = 0; head < task.heads; ++head) {
      std::memcpy(task.out + token * task.out_token + head * task.out_head,
                  task.in + token * task.in_token + head * task.in_head,
                  static_cast<size_t>(bytes));
    }
  }
}

// Memory for bookkeeping runs out as an Error.
template <typename F>
auto Allocate(const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  core::Fail(Code::kOutOfMemory, "no memory for the page tables of sequences");
}

// Room for `more` elements, so that appending them cannot throw; grows by doubling.
void Reserve(std::vector<int32_t>& pages, int64_t more) {
  const size_t need = pages.size() + static_cast<size_t>(more);
  if (need > pages.capacity()) {
    Allocate([&] { pages.reserve(std::max(need, 2 * pages.capacity())); });
  }
}

}  // namespace

class RIFFLE_LOCAL KvCache::Impl {
 public:
  explicit Impl(const KvCacheOptions& options)
      : options_(options),
        layout_(kv_cache::KvLayout::Of(options)),
        storage_(static_cast<size_t>(layout_.total)),
        pool_(options.pages) {}

  const KvCacheOptions& options() const { return options_; }
  const kv_cache::KvLayout& layout() const { return layout_; }
  const kv_cache::PagePool& pool() const { return pool_; }
  int64_t sequences() const { return static_cast<int64_t>(sequences_.size()); }

  int64_t Add(Sequence sequence) {
    Allocate([&] { sequences_.emplace(next_id_, std::move(sequence)); });
    return next_id_++;
  }

  const Sequence& Find(int64_t seq) const {
    const auto found = sequences_.find(seq);
    core::Check(found != sequences_.end(), Code::kBadSequence, "seq = ", seq,
                seq > 0 && seq < next_id_ ? " has been freed" : " is no sequence of this cache");
    return found->second;
  }
  Sequence& Find(int64_t seq) {
    return const_cast<Sequence&>(static_cast<const Impl*>(this)->Find(seq));
  }

  int64_t Fork(int64_t seq) {
    const Sequence& parent = Find(seq);
    Sequence child = Allocate([&] { return parent; });
    const std::vector<int32_t>& pages = parent.pages;  // stays where it is when the map grows
    const int64_t id = Add(std::move(child));
    for (const int32_t page : pages) {
      pool_.Share(page);
    }
    return id;
  }

  void Extend(int64_t seq, int64_t tokens);
  void Truncate(int64_t seq, int64_t length);
  void Free(int64_t seq) {
    Truncate(seq, 0);
    sequences_.erase(seq);
  }

  void CheckLayer(int64_t layer) const {
    core::Check(layer >= 0 && layer < options_.layers, Code::kBadRange, "layer = ", layer,
                " is not in 0..", options_.layers - 1);
  }
  void CheckInput(const char* name, const HeadsView& in, int64_t tokens) const;
  void MakePrivate(Sequence& sequence, int64_t first_page, int64_t end_page);
  void Store(int64_t layer, const Sequence& sequence, int64_t position, const HeadsView& in,
             int64_t begin, int64_t end, int64_t part);
  PagedKv View(int64_t layer, int64_t part) const;

 private:
  // part: 0 for keys, 1 for values
  uint8_t* Page(int64_t layer, int64_t page, int64_t part) const {
    return storage_.data() + layer * layout_.layer + page * layout_.page + part * layout_.values;
  }

  const KvCacheOptions options_;
  const kv_cache::KvLayout layout_;
  kv_cache::Storage storage_;
  kv_cache::PagePool pool_;
  std::unordered_map<int64_t, Sequence> sequences_;
  int64_t next_id_ = 1;
};

void KvCache::Impl::Extend(int64_t seq, int64_t tokens) {
  Sequence& sequence = Find(seq);
  core::Check(tokens >= 0, Code::kBadRange, "tokens = ", tokens, " is negative");
  if (tokens == 0) {
    return;
  }
  const int64_t held = static_cast<int64_t>(sequence.pages.size());
  const int64_t room = held * options_.page_size - sequence.length;
  const int64_t copies = room > 0 && pool_.IsShared(sequence.pages.back()) ? 1 : 0;
  const int64_t fresh = tokens > room ? CeilDiv(tokens - room, options_.page_size) : 0;
  // fresh + copies would overflow for the largest `tokens` and pages of one token.
  core::Check(fresh <= pool_.free() - copies, Code::kOutOfPages, "tokens = ", tokens,
              " for seq = ", seq, " of length ", sequence.length, " takes ", fresh, " pages",
              copies > 0 ? " and one for a copy of its shared last page" : "", " but ",
              pool_.free(), " of ", options_.pages, " are free");
  core::Check(tokens <= kMaxLength - sequence.length, Code::kBadRange, "tokens = ", tokens,
              " for seq = ", seq, " of length ", sequence.length, " makes it longer than ",
              kMaxLength);
  Reserve(sequence.pages, fresh);
  if (copies > 0) {
    MakePrivate(sequence, held - 1, held);
  }
  for (int64_t i = 0; i < fresh; ++i) {
    sequence.pages.push_back(pool_.Take());
  }
  sequence.length += tokens;
}

void KvCache::Impl::Truncate(int64_t seq, int64_t length) {
  Sequence& sequence = Find(seq);
  core::Check(length >= 0 && length <= sequence.length, Code::kBadRange, "length = ", length,
              " is not in 0..", sequence.length, ", the length of seq = ", seq);
  const size_t keep = static_cast<size_t>(CeilDiv(length, options_.page_size));
  while (sequence.pages.size() > keep) {  // last first, so that they are taken again in order
    pool_.Release(sequence.pages.back());
    sequence.pages.pop_back();
  }
  sequence.length = length;
}

// Copies those of the sequence's pages [first_page, end_page) that other sequences have too.
void KvCache::Impl::MakePrivate(Sequence& sequence, int64_t first_page, int64_t end_page) {
  const auto first = sequence.pages.begin() + first_page;
  const auto end = sequence.pages.begin() + end_page;
  const int64_t shared = std::count_if(first, end, [&](int32_t p) { return pool_.IsShared(p); });
  core::Check(shared <= pool_.free(), Code::kOutOfPages, "writing copies ", shared,
              " shared pages but ", pool_.free(), " of ", options_.pages, " are free");
  for (auto page = first; page != end; ++page) {
    if (!pool_.IsShared(*page)) {
      continue;
    }
    const int32_t copy = pool_.Take();
    for (int64_t layer = 0; layer < options_.layers; ++layer) {  // keys and values in one go
      std::memcpy(Page(layer, copy, 0), Page(layer, *page, 0), static_cast<size_t>(layout_.page));
    }
    pool_.Release(*page);
    *page = copy;
  }
}

void KvCache::Impl::CheckInput(const char* name, const HeadsView& in, int64_t tokens) const {
  core::Check(
      in.tokens == tokens && in.heads == options_.kv_heads && in.head_dim == options_.head_dim,
      Code::kBadShape, name, " is [", in.tokens, ", ", in.heads, ", ", in.head_dim,
      "] instead of [", tokens, ", ", options_.kv_heads, ", ", options_.head_dim, "]");
  core::Check(in.dtype == options_.dtype || in.dtype == DType::kF32, Code::kBadDType, name, " is ",
              Name(in.dtype), " but the cache takes ", Name(options_.dtype),
              options_.dtype == DType::kF32 ? "" : " or float32");
  if (tokens == 0) {
    return;
  }
  core::Check(in.data != nullptr, Code::kBadShape, name, " is null");
  // Wide enough for any strides, as `tokens` is a length and kv_heads fits in memory.
  using Wide = __int128;
  const Wide size = static_cast<Wide>(SizeOf(in.dtype));
  const Wide across_tokens = size * in.token_stride * (tokens - 1);
  const Wide across_heads = size * in.head_stride * (options_.kv_heads - 1);
  const Wide begin = static_cast<Wide>(reinterpret_cast<uintptr_t>(in.data)) +
                     std::min<Wide>(across_tokens, 0) + std::min<Wide>(across_heads, 0);
  const Wide end = static_cast<Wide>(reinterpret_cast<uintptr_t>(in.data)) +
                   std::max<Wide>(across_tokens, 0) + std::max<Wide>(across_heads, 0) +
                   size * options_.head_dim;
  core::Check(begin >= 0 && end <= static_cast<Wide>(std::numeric_limits<uintptr_t>::max()),
              Code::kBadShape, name, " with strides of ", in.token_stride, " and ", in.head_stride,
              " elements reaches beyond the address space");
  const Wide own = static_cast<Wide>(reinterpret_cast<uintptr_t>(storage_.data()));
  core::Check(end <= own || begin >= own + layout_.total, Code::kOverlap, name,
              " lies in the cache's own storage; copy it first");
}

// Tokens [begin, end) of `in`, whose first one goes to `position`; the pages of these positions
// are not shared.
void KvCache::Impl::Store(int64_t layer, const Sequence& sequence, int64_t position,
                          const HeadsView& in, int64_t begin, int64_t end, int64_t part) {
  const int64_t size = static_cast<int64_t>(SizeOf(in.dtype));
  kv_cache::RoundTask task;
  // A stride that is never taken may be anything, so it is not multiplied.
  task.in_token = in.tokens > 1 ? in.token_stride * size : 0;
  task.in = static_cast<const uint8_t*>(in.data) + begin * task.in_token;
  task.in_head = options_.kv_heads > 1 ? in.head_stride * size : 0;
  task.out_token = layout_.token;
  task.out_head = layout_.head;
  task.heads = options_.kv_heads;
  task.head_dim = options_.head_dim;
  while (begin < end) {
    const int64_t slot = (position + begin) % options_.page_size;
    const int64_t page =
        sequence.pages[static_cast<size_t>((position + begin) / options_.page_size)];
    HWY_DASSERT(!pool_.IsShared(static_cast<int32_t>(page)));
    task.tokens = std::min(end - begin, options_.page_size - slot);
    task.out = Page(layer, page, part) + slot * layout_.token;
    if (in.dtype == options_.dtype) {
      CopyTokens(task, layout_.token);
    } else {
      kv_cache::RoundTokens(task, options_.dtype);
    }
    begin += task.tokens;
    task.in += task.tokens * task.in_token;
  }
}

PagedKv KvCache::Impl::View(int64_t layer, int64_t part) const {
  CheckLayer(layer);
  const int64_t size = static_cast<int64_t>(SizeOf(options_.dtype));
  PagedKv view;
  view.data = Page(layer, 0, part);
  view.dtype = options_.dtype;
  view.num_pages = options_.pages;
  view.page_size = options_.page_size;
  view.kv_heads = options_.kv_heads;
  view.head_dim = options_.head_dim;
  view.page_stride = layout_.page / size;
  view.token_stride = layout_.token / size;
  view.head_stride = layout_.head / size;
  return view;
}

KvCache::KvCache(const KvCacheOptions& options) try {
  const core::EntryPoint entry;
  core::EnsureTarget();
  impl_ = Allocate([&] { return std::make_unique<Impl>(options); });
} catch (...) {
  core::RethrowAsError();
}
KvCache::~KvCache() = default;

const KvCacheOptions& KvCache::options() const { return impl_->options(); }
int64_t KvCache::Create() try {
  const core::EntryPoint entry;
  return impl_->Add({});
} catch (...) {
  core::RethrowAsError();
}
int64_t KvCache::Fork(int64_t seq) try {
  const core::EntryPoint entry;
  return impl_->Fork(seq);
} catch (...) {
  core::RethrowAsError();
}
void KvCache::Extend(int64_t seq, int64_t tokens) try {
  const core::EntryPoint entry;
  impl_->Extend(seq, tokens);
} catch (...) {
  core::RethrowAsError();
}
void KvCache::Truncate(int64_t seq, int64_t length) try {
  const core::EntryPoint entry;
  impl_->Truncate(seq, length);
} catch (...) {
  core::RethrowAsError();
}
void KvCache::Free(int64_t seq) try {
  const core::EntryPoint entry;
  impl_->Free(seq);
} catch (...) {
  core::RethrowAsError();
}
int64_t KvCache::Length(int64_t seq) const try {
  const core::EntryPoint entry;
  return std::as_const(*impl_).Find(seq).length;
} catch (...) {
  core::RethrowAsError();
}
PagedKv KvCache::Keys(int64_t layer) const try {
  const core::EntryPoint entry;
  return impl_->View(layer, 0);
} catch (...) {
  core::RethrowAsError();
}
PagedKv KvCache::Values(int64_t layer) const try {
  const core::EntryPoint entry;
  return impl_->View(layer, 1);
} catch (...) {
  core::RethrowAsError();
}
int64_t KvCache::sequences() const { return impl_->sequences(); }
int64_t KvCache::pages_free() const { return impl_->pool().free(); }
int64_t KvCache::pages_used() const { return options().pages - pages_free(); }
int64_t KvCache::pages_shared() const { return impl_->pool().shared(); }
int64_t KvCache::bytes() const { return impl_->layout().total; }

void KvCache::Write(int64_t layer, int64_t seq, int64_t position, const HeadsView& keys,
                    const HeadsView& values, const CallOptions& options) try {
  const core::EntryPoint entry;
  impl_->CheckLayer(layer);
  Sequence& sequence = impl_->Find(seq);
  const int64_t tokens = keys.tokens;
  core::Check(tokens >= 0, Code::kBadShape, "keys has ", tokens, " tokens");
  core::Check(position >= 0 && position <= sequence.length && tokens <= sequence.length - position,
              Code::kBadRange, "position = ", position, " with ", tokens,
              " tokens is not in the length ", sequence.length, " of seq = ", seq);
  impl_->CheckInput("keys", keys, tokens);
  impl_->CheckInput("values", values, tokens);
  if (tokens == 0) {
    return;
  }
  const int64_t page_size = this->options().page_size;
  const auto make_private = [&] {
    impl_->MakePrivate(sequence, position / page_size, CeilDiv(position + tokens, page_size));
  };
  const auto store = [&](int64_t begin, int64_t end) {
    impl_->Store(layer, sequence, position, keys, begin, end, 0);
    impl_->Store(layer, sequence, position, values, begin, end, 1);
  };
  const int64_t token_bytes = 2 * impl_->layout().token * this->options().kv_heads;
  if (tokens < kThreadsBytes / token_bytes) {
    make_private();
    store(0, tokens);
    return;
  }
  core::Lease lease(options.pool);  // may throw, so before anything is changed
  make_private();
  const int64_t chunk = CeilDiv(CeilDiv(kTaskBytes, token_bytes), page_size) * page_size;
  const int64_t slot = position % page_size;
  lease.Run(CeilDiv(slot + tokens, chunk), [&](int64_t task, uint8_t*) {
    store(std::max<int64_t>(0, task * chunk - slot), std::min(tokens, (task + 1) * chunk - slot));
  });
} catch (...) {
  core::RethrowAsError();
}

KvBatch KvCache::Batch(std::span<const int64_t> seqs) const try {
  const core::EntryPoint entry;
  KvBatch batch;
  Batch(seqs, batch);
  return batch;
} catch (...) {
  core::RethrowAsError();
}

void KvCache::Batch(std::span<const int64_t> seqs, KvBatch& batch) const try {
  const core::EntryPoint entry;
  const Impl& impl = *impl_;
  int64_t max_pages = 0;
  for (const int64_t seq : seqs) {
    max_pages = std::max(max_pages, static_cast<int64_t>(impl.Find(seq).pages.size()));
  }
  const size_t width = static_cast<size_t>(max_pages);
  Allocate([&] {
    batch.kv_lens.resize(seqs.size());
    batch.page_table.resize(seqs.size() * width);
  });
  batch.max_pages = max_pages;
  int32_t* row = batch.page_table.data();
  for (size_t i = 0; i < seqs.size(); ++i, row += width) {
    const Sequence& sequence = impl.Find(seqs[i]);
    batch.kv_lens[i] = static_cast<int32_t>(sequence.length);
    int32_t* const behind = std::copy(sequence.pages.begin(), sequence.pages.end(), row);
    std::fill(behind, row + width, -1);
  }
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
