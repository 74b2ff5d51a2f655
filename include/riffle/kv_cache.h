// A pool of pages of keys and values, shared by sequences: the memory behind PagedAttention.
//
// A page holds page_size tokens of one sequence in every layer; its number is the same in all of
// them. Per layer the pool is [pages, keys and values, kv_heads, page_size, head_dim] (FlashInfer's
// combined HND layout): a (page, head) tile is contiguous, and a page's values follow its keys,
// which reads 5 to 7 % faster than a pool for keys and another for values (16-token pages in random
// order, 537 MB). Where keys and values are kept in different ways or have scales, a page is [keys,
// their scales, values, their scales], each [kv_heads, page_size, ...] at a multiple of 64 bytes.
//
// Sequences made by Fork share pages, each counted by its references (copy-on-write as in vLLM's
// PagedAttention, Kwon et al. 2023, arXiv 2309.06180). A page of more than one reference is never
// written: it is copied first.
//
// Errors are riffle::Error, thrown before anything has changed: the cache and all its sequences are
// then as they were.
//
// Threads: one call at a time, except that const calls may run beside each other. Reading pages
// through Keys and Values (PagedAttention) may run beside calls on other sequences: they never
// write into a page of the sequences that are read.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "riffle/attention.h"
#include "riffle/export.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

struct KvCacheOptions {
  int64_t layers = 1;
  int64_t kv_heads = 1;
  int64_t head_dim = 128;  // PagedAttention takes multiples of 8 from 8 to 1024
  int64_t pages = 0;       // 1 to 2^31 - 1; of each layer
  int64_t page_size = 16;  // tokens, at least 1
  // How keys are kept: f32, f16, bf16; e4m3, e5m2 and i8 with scales; or, if format is not kPlain,
  // blocks of that format, whatever dtype says. See riffle/write_kv.h.
  DType dtype = DType::kBF16;
  KvFormat format = KvFormat::kPlain;

  // How values are kept, where that differs from keys. A value_dtype without a value_format means
  // kPlain.
  int64_t value_dim = 0;  // 0: head_dim
  std::optional<DType> value_dtype = {};
  std::optional<KvFormat> value_format = {};

  // Scales of e4m3, e5m2 and i8. Write computes one for each row of head_dim elements, or for each
  // group of 32, 64 or 128 elements of a row.
  DType scale_dtype = DType::kF32;  // f32, f16, bf16 or e8m0
  int64_t scale_group = 0;          // 0: the whole row
};

// The caller's name for the contents of a page: a hash of its tokens and of all tokens before it
// (and of whatever else keys and values depend on). Equal keys mean equal contents, so the hash
// must not collide.
struct BlockKey {
  uint64_t words[2] = {};
  friend bool operator==(const BlockKey&, const BlockKey&) = default;
};

// Counts since the cache was made; the last member is a current number.
struct KvCacheStats {
  int64_t blocks_wanted = 0;      // keys that Create was given
  int64_t blocks_found = 0;       // pages that Create found for these keys and shared
  int64_t pages_evicted = 0;      // pages with a key that were taken for other contents
  int64_t pages_copied = 0;       // shared pages, copied before a write
  int64_t pages_swapped_out = 0;  // pages copied to the caller's memory
  int64_t pages_swapped_in = 0;   // pages copied back
  int64_t pages_reusable = 0;     // now: pages that have a key but no sequence
};

// Lengths and pages; valid until one of the sequences is extended, written, truncated or freed.
struct KvBatch {
  std::vector<int32_t> kv_lens;     // [sequences]
  std::vector<int32_t> page_table;  // [sequences, max_pages]; -1 after a sequence's last page
  int64_t max_pages = 0;            // the largest number of pages of a sequence
};

class RIFFLE_API KvCache {
 public:
  // The storage starts as zeros, takes memory only as it is written, and asks for huge pages. Each
  // layer is aligned to 64 bytes, and so are tiles whose size is a multiple of 64.
  // Throws Error: kBadShape for dimensions outside their limits, kBadDType, kOutOfMemory with the
  // bytes wanted.
  explicit KvCache(const KvCacheOptions& options);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvCacheOptions& options() const;

  // A sequence of length 0. Its id is above zero and never used again in this cache. Every call
  // below throws Error(kBadSequence) for an id that is not, or no longer, a sequence.
  int64_t Create();

  // A sequence of the same length and contents that shares all pages of `seq`. Takes no page.
  int64_t Fork(int64_t seq);

  // A sequence that begins with the longest prefix of these blocks that the cache has: it shares
  // their pages, and its length is Lookup(keys). Keys stand for page_size tokens each, in order.
  int64_t Create(std::span<const BlockKey> keys);

  // Tokens of the longest prefix of these blocks that the cache has: up to the first key that no
  // page has.
  int64_t Lookup(std::span<const BlockKey> keys) const;

  // Gives the first keys.size() pages of `seq` their keys, so that Create finds them, even after
  // `seq` has ended: a page that has a key but no sequence keeps its contents until a page is
  // needed and no page without a key is free. Then the page that was released longest ago is taken,
  // and of one sequence the last page first. The contents of these pages must have been written in
  // every layer. A page gets no key that another page already has. Writing to a page removes its
  // key, and so does extending a sequence into it.
  // Throws Error: kBadRange if there are more keys than full pages of `seq`, kBadOption if a page
  // has another key already, kOutOfMemory.
  void SetBlockKeys(int64_t seq, std::span<const BlockKey> keys);

  // Copies the pages of `seq` into the caller's memory of at least SwapBytes(seq) bytes, and
  // releases them. The sequence keeps its id and length, but until SwapIn brings it back every call
  // but Length, SwapBytes and Free throws Error(kBadSequence) for it.
  //   pool  whose threads take part; null: DefaultPool()
  // Throws Error: kBadShape for memory that is null or too small, kOverlap for the cache's own.
  void SwapOut(int64_t seq, std::span<uint8_t> memory, const CallOptions& options = {});

  // Takes pages for `seq` and copies back what SwapOut left in this memory. Throws Error:
  // kBadSequence if it is not swapped out, kBadShape and kOverlap as SwapOut, kOutOfPages.
  void SwapIn(int64_t seq, std::span<const uint8_t> memory, const CallOptions& options = {});
  int64_t SwapBytes(int64_t seq) const;

  // Makes `seq` longer by `tokens` >= 0, whose keys and values are unspecified until written. Takes
  // the pages for them, and one more to copy the last page if that is shared and has room. So
  // writing the new positions needs no page, unless `seq` has been forked since.
  // Throws Error: kOutOfPages if fewer are free, kBadRange for tokens < 0 and a length of 2^31 or
  // more.
  void Extend(int64_t seq, int64_t tokens);

  // Writes keys and values of the positions from `position` on in one layer, as WriteKv does.
  // Shared pages that hold any of these positions are copied first, in all layers.
  //   keys, values  [tokens, kv_heads, head_dim or value_dim] of f32, f16 or bf16; neither may lie
  //                 in the cache's own storage
  //   options       the pool's threads take part in large writes
  // Throws Error: kBadRange for a layer or positions that do not exist, kBadShape, kBadDType,
  // kOverlap, kOutOfPages.
  void Write(int64_t layer, int64_t seq, int64_t position, const HeadsView& keys,
             const HeadsView& values, const CallOptions& options = {});

  // Shortens `seq` to `length` and releases the pages after it. Throws Error(kBadRange) unless 0 <=
  // length <= Length(seq).
  void Truncate(int64_t seq, int64_t length);

  // Releases the sequence, and its pages unless other sequences have them.
  void Free(int64_t seq);

  int64_t Length(int64_t seq) const;  // in tokens

  // Lengths and page table of sequences, in the order given; a sequence may be listed twice. The
  // second form reuses the memory of `batch`, which is unspecified after an error.
  KvBatch Batch(std::span<const int64_t> seqs) const;
  void Batch(std::span<const int64_t> seqs, KvBatch& batch) const;

  // A layer's keys and values [pages, kv_heads, page_size, head_dim or value_dim], with their
  // scales if there are any, read-only, valid as long as the cache. Throws Error(kBadRange) unless
  // 0 <= layer < layers.
  PagedKv Keys(int64_t layer) const;
  PagedKv Values(int64_t layer) const;

  int64_t sequences() const;
  int64_t pages_free() const;    // pages without a sequence, including those that have a key
  int64_t pages_used() const;    // by one sequence or more: pages - pages_free
  int64_t pages_shared() const;  // by two or more
  int64_t bytes() const;         // of storage, pages of all layers
  KvCacheStats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace riffle
