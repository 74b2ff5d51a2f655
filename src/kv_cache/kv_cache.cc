#include "riffle/kv_cache.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/entry_point.h"
#include "core/targets.h"
#include "kv_cache/kv_cache_impl.h"

namespace riffle {

using kv_cache::Sequence;
using kv_cache::TranslateBadAlloc;

KvCache::KvCache(const KvCacheOptions& options) try {
  const core::EntryPoint entry;
  core::EnsureTarget();
  impl_ = TranslateBadAlloc([&] { return std::make_unique<Impl>(options); });
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
  return impl_->FindEvenIfSwapped(seq).length;
} catch (...) {
  core::RethrowAsError();
}
PagedKv KvCache::Keys(int64_t layer) const try {
  const core::EntryPoint entry;
  impl_->CheckLayer(layer);
  return impl_->Keys(layer);
} catch (...) {
  core::RethrowAsError();
}
PagedKv KvCache::Values(int64_t layer) const try {
  const core::EntryPoint entry;
  impl_->CheckLayer(layer);
  return impl_->Values(layer);
} catch (...) {
  core::RethrowAsError();
}
int64_t KvCache::sequences() const { return impl_->sequences(); }
int64_t KvCache::pages_free() const { return impl_->pool().free(); }
int64_t KvCache::pages_used() const { return options().pages - pages_free(); }
int64_t KvCache::pages_shared() const { return impl_->pool().shared(); }
int64_t KvCache::bytes() const { return impl_->layout().total; }

KvCacheStats KvCache::stats() const { return impl_->stats(); }

void KvCache::Write(int64_t layer, int64_t seq, int64_t position, const HeadsView& keys,
                    const HeadsView& values, const CallOptions& options) try {
  const core::EntryPoint entry;
  impl_->Write(layer, seq, position, keys, values, options.pool);
} catch (...) {
  core::RethrowAsError();
}

int64_t KvCache::Create(std::span<const BlockKey> keys) try {
  const core::EntryPoint entry;
  return impl_->CreateFrom(keys);
} catch (...) {
  core::RethrowAsError();
}
int64_t KvCache::Lookup(std::span<const BlockKey> keys) const try {
  const core::EntryPoint entry;
  return impl_->FindBlocks(keys) * options().page_size;
} catch (...) {
  core::RethrowAsError();
}
void KvCache::SetBlockKeys(int64_t seq, std::span<const BlockKey> keys) try {
  const core::EntryPoint entry;
  impl_->SetBlockKeys(seq, keys);
} catch (...) {
  core::RethrowAsError();
}

void KvCache::SwapOut(int64_t seq, std::span<uint8_t> memory, const CallOptions& options) try {
  const core::EntryPoint entry;
  impl_->SwapOut(seq, memory, options.pool);
} catch (...) {
  core::RethrowAsError();
}
void KvCache::SwapIn(int64_t seq, std::span<const uint8_t> memory, const CallOptions& options) try {
  const core::EntryPoint entry;
  impl_->SwapIn(seq, memory, options.pool);
} catch (...) {
  core::RethrowAsError();
}
int64_t KvCache::SwapBytes(int64_t seq) const try {
  const core::EntryPoint entry;
  return impl_->SwapBytes(seq);
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
  TranslateBadAlloc([&] {
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
