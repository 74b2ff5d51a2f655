// The keys of pages, and the reusable pages, which have a key but no sequence, in the order in
// which they were released.
#pragma once

#include <hwy/base.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>

#include "kv_cache/storage.h"
#include "riffle/kv_cache.h"

namespace riffle::kv_cache {

struct BlockKeyHash {
  size_t operator()(const BlockKey& key) const {
    // Callers' hashes are spread well already; the multiplication spreads keys that are counters.
    return static_cast<size_t>((key.words[0] ^ key.words[1] << 1) * 0x9e3779b97f4a7c15u);
  }
};

class PrefixPages {
 public:
  // Takes memory only as pages get keys. Throws Error(kOutOfMemory).
  explicit PrefixPages(int64_t pages);

  // The page with this key; -1: none.
  int32_t Find(const BlockKey& key) const {
    const auto found = page_of_.find(key);
    return found == page_of_.end() ? -1 : found->second;
  }

  bool HasKey(int32_t page) const { return nodes()[page].has_key; }
  const BlockKey& KeyOf(int32_t page) const {
    HWY_DASSERT(HasKey(page));
    return nodes()[page].key;
  }

  // Gives pages[i] the key keys[i] unless a page has that key already. Throws std::bad_alloc; then
  // no page has got a key. Pre: pages[i] has no key, or this one.
  void Add(std::span<const int32_t> pages, std::span<const BlockKey> keys);

  // Removes the key of a page. Pre: it has one and is not in the list of reusable pages.
  void Forget(int32_t page);

  // The list of reusable pages: those that have a key but no sequence.
  void AppendReusable(int32_t page);
  void RemoveReusable(int32_t page);
  int32_t TakeOldestReusable();  // removes the first page and its key. Pre: reusable() > 0
  int64_t reusable() const { return reusable_; }

 private:
  struct Node {
    BlockKey key;
    int32_t prev, next;  // in the list
    bool has_key;
    bool is_settled;  // the call that gave it the key has succeeded
  };

  Node* nodes() const { return reinterpret_cast<Node*>(nodes_.data()); }

  int32_t end_;    // the list's sentinel: before its first page and after its last
  Storage nodes_;  // [pages + 1]
  std::unordered_map<BlockKey, int32_t, BlockKeyHash> page_of_;
  int64_t reusable_ = 0;
};

}  // namespace riffle::kv_cache
