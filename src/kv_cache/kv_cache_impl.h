// A cache: its storage, its pages and its sequences. The entry points are in kv_cache.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <span>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/lease.h"
#include "kv_cache/layout.h"
#include "kv_cache/page_pool.h"
#include "kv_cache/storage.h"
#include "riffle/kv_cache.h"

namespace riffle {
namespace kv_cache {

struct Sequence {
  std::vector<int32_t> pages;  // ceil(length / page_size); none while it is swapped out
  int64_t length = 0;
  bool is_swapped_out = false;
};

inline int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// Calls f. If memory for bookkeeping runs out, throws Error(kOutOfMemory).
template <typename F>
auto TranslateBadAlloc(const F& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  core::Fail(Code::kOutOfMemory, "no memory for the page tables of sequences");
}

}  // namespace kv_cache

class RIFFLE_LOCAL KvCache::Impl {
 public:
  using Sequence = kv_cache::Sequence;

  explicit Impl(const KvCacheOptions& options)
      : options_(options),
        layout_(kv_cache::KvLayout::FromOptions(options)),
        storage_(static_cast<size_t>(layout_.total)),
        pool_(options.pages) {}

  const KvCacheOptions& options() const { return options_; }
  const kv_cache::KvLayout& layout() const { return layout_; }
  const kv_cache::PagePool& pool() const { return pool_; }
  int64_t sequences() const { return static_cast<int64_t>(sequences_.size()); }
  KvCacheStats stats() const;

  int64_t Add(Sequence sequence) {
    kv_cache::TranslateBadAlloc([&] { sequences_.emplace(next_id_, std::move(sequence)); });
    return next_id_++;
  }

  // Both throw Error(kBadSequence) for an id that is no sequence, Find also if it is swapped out.
  const Sequence& FindEvenIfSwapped(int64_t seq) const;
  const Sequence& Find(int64_t seq) const;
  Sequence& Find(int64_t seq) {
    return const_cast<Sequence&>(static_cast<const Impl*>(this)->Find(seq));
  }

  int64_t Fork(int64_t seq);
  void Extend(int64_t seq, int64_t tokens);
  void Truncate(int64_t seq, int64_t length);
  void Free(int64_t seq);

  // How many of these blocks, from the first on, are in pages of the cache.
  int64_t FindBlocks(std::span<const BlockKey> keys) const;
  int64_t CreateFrom(std::span<const BlockKey> keys);
  void SetBlockKeys(int64_t seq, std::span<const BlockKey> keys);

  void Write(int64_t layer, int64_t seq, int64_t position, const HeadsView& keys,
             const HeadsView& values, ThreadPool* pool);

  int64_t SwapBytes(int64_t seq) const;
  void SwapOut(int64_t seq, std::span<uint8_t> memory, ThreadPool* pool);
  void SwapIn(int64_t seq, std::span<const uint8_t> memory, ThreadPool* pool);

  void CheckLayer(int64_t layer) const {
    core::Check(layer >= 0 && layer < options_.layers, Code::kBadRange, "layer = ", layer,
                " is not in 0..", options_.layers - 1);
  }
  // Pre: `layer` exists.
  PagedKvOut Keys(int64_t layer) const { return View(layer, layout_.keys); }
  PagedKvOut Values(int64_t layer) const { return View(layer, layout_.values); }

 private:
  uint8_t* Page(int64_t layer, int64_t page) const {
    return storage_.data() + layer * layout_.layer + page * layout_.page;
  }
  PagedKvOut View(int64_t layer, const kv_cache::SideLayout& side) const {
    return layout_.View(options_, side, Page(layer, 0));
  }

  void CheckInput(const char* name, const HeadsView& in, int64_t tokens, int64_t head_dim) const;
  void CheckSwapMemory(int64_t seq, const void* memory, size_t size) const;
  void MakePrivate(Sequence& sequence, int64_t first_page, int64_t end_page);
  template <typename Copy>
  void CopyPages(const Sequence& sequence, core::Lease& lease, const Copy& copy) const;

  const KvCacheOptions options_;
  const kv_cache::KvLayout layout_;
  kv_cache::Storage storage_;
  kv_cache::PagePool pool_;
  std::unordered_map<int64_t, Sequence> sequences_;
  int64_t next_id_ = 1;
  KvCacheStats stats_;
};

}  // namespace riffle
