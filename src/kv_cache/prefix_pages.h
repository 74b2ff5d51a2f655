// The keys of pages, and the pages with a key that no sequence has, in the order in which they were
// freed.
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
    // Callers' hashes are spread well already; this is for those that count.
    return static_cast<size_t>((key.words[0] ^ key.words[1] << 1) * 0x9e3779b97f4a7c15u);
  }
};

class PrefixPages {
 public:
  // Memory is taken as pages get keys. Throws Error(kOutOfMemory).
  explicit PrefixPages(int64_t pages);

  // The page of a key; -1: none.
  int32_t Find(const BlockKey& key) const {
    const auto found = page_of_.find(key);
    return found == page_of_.end() ? -1 : found->second;
  }

  bool HasKey(int32_t page) const { return nodes()[page].has_key; }
  const BlockKey& KeyOf(int32_t page) const {
    HWY_DASSERT(HasKey(page));
    return nodes()[page].key;
  }

  // Gives pages[i] the key keys[i] unless a page has that key already. All or nothing: throws
  // std::bad_alloc. pages[i] has no key, or this one.
  void Add(std::span<const int32_t> pages, std::span<const BlockKey> keys);

  // Takes the key of a page away that has one and is not in the list.
  void Forget(int32_t page);

  // The list of pages that have a key but no sequence.
  void GiveUp(int32_t page);     // at its end
  void TakeBack(int32_t page);   // from anywhere
  int32_t TakeLongestGivenUp();  // from its start, which loses its key; given_up() > 0
  int64_t given_up() const { return given_up_; }

 private:
  struct Node {
    BlockKey key;
    int32_t before, behind;  // in the list
    bool has_key;
    bool is_settled;  // the call that gave it the key has succeeded
  };

  Node* nodes() const { return reinterpret_cast<Node*>(nodes_.data()); }

  int32_t end_;    // the node that is before the first of the list and behind the last
  Storage nodes_;  // [pages + 1]
  std::unordered_map<BlockKey, int32_t, BlockKeyHash> page_of_;
  int64_t given_up_ = 0;
};

}  // namespace riffle::kv_cache
