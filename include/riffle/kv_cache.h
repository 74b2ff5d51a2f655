// A pool of pages of keys and values, shared by sequences: the memory behind PagedAttention.
//
// A page holds page_size tokens of one sequence in every layer; its number is the same in all of
// them. Per layer the pool is [pages, keys and values, kv_heads, page_size, head_dim] (FlashInfer's
// combined HND layout): a (page, head) tile is contiguous, and a page's values follow its keys,
// which reads 5 to 7 % faster than two pools apart (16-token pages in random order, 537 MB).
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
  int64_t head_dim = 128;  // PagedAttention takes 32 to 512, multiples of 8
  int64_t pages = 0;       // 1 to 2^31 - 1; of each layer
  int64_t page_size = 16;  // tokens; PagedAttention takes up to 256
  DType dtype = DType::kBF16;
};

// Where sequences lie; right until one of them is extended, written, truncated or freed.
struct KvBatch {
  std::vector<int32_t> kv_lens;     // [sequences]
  std::vector<int32_t> page_table;  // [sequences, max_pages]; -1 behind a sequence's last page
  int64_t max_pages = 0;            // the most that one of the sequences has
};

class RIFFLE_API KvCache {
 public:
  // The storage is zero and takes memory as it is written. It is aligned to 64 bytes in each layer
  // (tiles are too where their size is a multiple of it) and asks for huge pages.
  // Throws Error: kBadShape for dimensions outside their limits, kBadDType, kOutOfMemory with the
  // bytes wanted.
  explicit KvCache(const KvCacheOptions& options);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvCacheOptions& options() const;

  // A sequence of length 0. Its id is above zero and never used again in this cache. Every call
  // below throws Error(kBadSequence) for an id that is not, or no more, a sequence.
  int64_t Create();

  // A sequence of the same length and contents that shares all pages of `seq`. Takes no page.
  int64_t Fork(int64_t seq);

  // Makes `seq` longer by `tokens` >= 0, whose keys and values are unspecified until written: takes
  // the pages for them, and one more to copy the last page if new positions lie in it and it is
  // shared. So writing the new positions needs no page, unless `seq` has been forked since.
  // Throws Error: kOutOfPages if fewer are free, kBadRange for tokens < 0 and a length of 2^31 or
  // more.
  void Extend(int64_t seq, int64_t tokens);

  // Writes keys and values of the positions from `position` on in one layer. Pages among them that
  // are shared are copied first, in all layers. Elements are of the cache's dtype, or f32, which is
  // rounded to the nearest (ties to even, subnormals kept).
  //   keys, values  [tokens, kv_heads, head_dim]; neither may lie in the cache's own storage
  //   options       the pool's threads take part in large writes
  // Throws Error: kBadRange for a layer or positions that do not exist, kBadShape, kBadDType,
  // kOverlap, kOutOfPages.
  void Write(int64_t layer, int64_t seq, int64_t position, const HeadsView& keys,
             const HeadsView& values, const CallOptions& options = {});

  // Shortens `seq` to `length` and releases the pages behind it. Throws Error(kBadRange) unless
  // 0 <= length <= Length(seq).
  void Truncate(int64_t seq, int64_t length);

  // Releases the sequence, and its pages unless other sequences have them.
  void Free(int64_t seq);

  int64_t Length(int64_t seq) const;  // in tokens

  // Lengths and page table of sequences, in the order given; one may stand there more than once.
  // The second form reuses the memory of `batch`, which is unspecified after an error.
  KvBatch Batch(std::span<const int64_t> seqs) const;
  void Batch(std::span<const int64_t> seqs, KvBatch& batch) const;

  // A layer's keys and values [pages, kv_heads, page_size, head_dim], read-only, valid as long as
  // the cache. Throws Error(kBadRange) unless 0 <= layer < layers.
  PagedKv Keys(int64_t layer) const;
  PagedKv Values(int64_t layer) const;

  int64_t sequences() const;
  int64_t pages_free() const;
  int64_t pages_used() const;    // by one sequence or more: pages - pages_free
  int64_t pages_shared() const;  // by two or more
  int64_t bytes() const;         // of storage, pages of all layers

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace riffle
