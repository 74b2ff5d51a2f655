// How sequences use pages: they grow, share, copy on write, and are found by keys.
#include <cstring>
#include <limits>

#include "kv_cache/kv_cache_impl.h"

namespace riffle {
namespace {

constexpr int64_t kMaxLength = std::numeric_limits<int32_t>::max();  // kv_lens are int32

// Makes room for `more` elements, so that appending them cannot throw; grows by doubling.
void Reserve(std::vector<int32_t>& pages, int64_t more) {
  const size_t need = pages.size() + static_cast<size_t>(more);
  if (need > pages.capacity()) {
    kv_cache::TranslateBadAlloc([&] { pages.reserve(std::max(need, 2 * pages.capacity())); });
  }
}

}  // namespace

const kv_cache::Sequence& KvCache::Impl::FindEvenIfSwapped(int64_t seq) const {
  const auto found = sequences_.find(seq);
  core::Check(found != sequences_.end(), Code::kBadSequence, "seq = ", seq,
              seq > 0 && seq < next_id_ ? " has been freed" : " is no sequence of this cache");
  return found->second;
}

const kv_cache::Sequence& KvCache::Impl::Find(int64_t seq) const {
  const Sequence& sequence = FindEvenIfSwapped(seq);
  core::Check(!sequence.is_swapped_out, Code::kBadSequence, "seq = ", seq,
              " is swapped out; SwapIn brings it back");
  return sequence;
}

KvCacheStats KvCache::Impl::stats() const {
  KvCacheStats stats = stats_;
  stats.pages_evicted = pool_.evicted();
  stats.pages_reusable = pool_.reusable();
  return stats;
}

int64_t KvCache::Impl::Fork(int64_t seq) {
  const Sequence& parent = Find(seq);
  Sequence child = kv_cache::TranslateBadAlloc([&] { return parent; });
  const std::vector<int32_t>& pages = parent.pages;  // its address stays valid when the map grows
  const int64_t id = Add(std::move(child));
  for (const int32_t page : pages) {
    pool_.Share(page);
  }
  return id;
}

void KvCache::Impl::Extend(int64_t seq, int64_t tokens) {
  Sequence& sequence = Find(seq);
  core::Check(tokens >= 0, Code::kBadRange, "tokens = ", tokens, " is negative");
  if (tokens == 0) {
    return;
  }
  const int64_t held = static_cast<int64_t>(sequence.pages.size());
  const int64_t room = held * options_.page_size - sequence.length;
  const int64_t copies = room > 0 && pool_.IsShared(sequence.pages.back()) ? 1 : 0;
  const int64_t fresh = tokens > room ? kv_cache::CeilDiv(tokens - room, options_.page_size) : 0;
  // Subtracts copies: fresh + copies would overflow for the largest `tokens` and a page_size of 1.
  core::Check(fresh <= pool_.free() - copies, Code::kOutOfPages, "tokens = ", tokens,
              " for seq = ", seq, " of length ", sequence.length, " takes ", fresh, " pages",
              copies > 0 ? " and one for a copy of its shared last page" : "", " but ",
              pool_.free(), " of ", options_.pages, " are free");
  core::Check(tokens <= kMaxLength - sequence.length, Code::kBadRange, "tokens = ", tokens,
              " for seq = ", seq, " of length ", sequence.length, " makes it longer than ",
              kMaxLength);
  Reserve(sequence.pages, fresh);
  if (room > 0) {
    // Also removes the page's key, so that nobody shares it before its new positions are written.
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
  const size_t keep = static_cast<size_t>(kv_cache::CeilDiv(length, options_.page_size));
  while (sequence.pages.size() > keep) {  // last page first, so that Take returns them in order
    pool_.Release(sequence.pages.back());
    sequence.pages.pop_back();
  }
  sequence.length = length;
}

void KvCache::Impl::Free(int64_t seq) {
  if (!FindEvenIfSwapped(seq).is_swapped_out) {
    Truncate(seq, 0);
  }
  sequences_.erase(seq);
}

// Of the sequence's pages [first_page, end_page), replaces the shared ones with copies, and removes
// the keys of the others.
void KvCache::Impl::MakePrivate(Sequence& sequence, int64_t first_page, int64_t end_page) {
  HWY_DASSERT(first_page >= 0 && end_page <= static_cast<int64_t>(sequence.pages.size()));
  const auto first = sequence.pages.begin() + first_page;
  const auto end = sequence.pages.begin() + end_page;
  const int64_t shared = std::count_if(first, end, [&](int32_t p) { return pool_.IsShared(p); });
  core::Check(shared <= pool_.free(), Code::kOutOfPages, "writing copies ", shared,
              " shared pages but ", pool_.free(), " of ", options_.pages, " are free");
  for (auto page = first; page != end; ++page) {
    if (!pool_.IsShared(*page)) {
      pool_.ForgetKey(*page);
      continue;
    }
    const int32_t copy = pool_.Take();
    for (int64_t layer = 0; layer < options_.layers; ++layer) {  // keys and values at once
      std::memcpy(Page(layer, copy), Page(layer, *page), static_cast<size_t>(layout_.page));
    }
    pool_.Release(*page);
    *page = copy;
    ++stats_.pages_copied;
  }
}

int64_t KvCache::Impl::FindBlocks(std::span<const BlockKey> keys) const {
  const kv_cache::PrefixPages* const prefixes = pool_.prefixes();
  const auto limit = std::min(static_cast<int64_t>(keys.size()), kMaxLength / options_.page_size);
  int64_t found = 0;
  while (prefixes != nullptr && found < limit &&
         prefixes->Find(keys[static_cast<size_t>(found)]) >= 0) {
    ++found;
  }
  return found;
}

int64_t KvCache::Impl::CreateFrom(std::span<const BlockKey> keys) {
  const int64_t blocks = FindBlocks(keys);
  Sequence sequence;
  Reserve(sequence.pages, blocks);
  for (const BlockKey& key : keys.first(static_cast<size_t>(blocks))) {
    sequence.pages.push_back(pool_.prefixes()->Find(key));
  }
  sequence.length = blocks * options_.page_size;
  const int64_t id = Add(std::move(sequence));
  for (const int32_t page : FindEvenIfSwapped(id).pages) {
    pool_.Share(page);
  }
  stats_.blocks_wanted += static_cast<int64_t>(keys.size());
  stats_.blocks_found += blocks;
  return id;
}

void KvCache::Impl::SetBlockKeys(int64_t seq, std::span<const BlockKey> keys) {
  const Sequence& sequence = Find(seq);
  const auto full = static_cast<size_t>(sequence.length / options_.page_size);
  core::Check(keys.size() <= full, Code::kBadRange, "keys has ", keys.size(),
              " keys but seq = ", seq, " of length ", sequence.length, " has ", full,
              " full pages");
  const std::span<const int32_t> pages = std::span(sequence.pages).first(keys.size());
  for (size_t i = 0; i < keys.size() && pool_.prefixes() != nullptr; ++i) {
    core::Check(!pool_.HasKey(pages[i]) || pool_.prefixes()->KeyOf(pages[i]) == keys[i],
                Code::kBadOption, "keys[", i, "] is another one than page ", i, " of seq = ", seq,
                " has already; only writing to the page takes that away");
  }
  if (!keys.empty()) {
    kv_cache::TranslateBadAlloc([&] { pool_.GetOrCreatePrefixes().Add(pages, keys); });
  }
}

}  // namespace riffle
