// Attention over keys and values in pages of a shared pool. Decode, prefill, chunked prefill and
// mixed ragged batches are one operation.
//
// Bitwise invariance: on one SIMD target a query's result always has the same bits, whatever the
// batch it is in, the thread count, the page size and the layout, by decode or by prefill.
// Everything per (query, head) is computed in an order fixed by absolute key positions
// (docs/attention.md).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "riffle/export.h"
#include "riffle/indices.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// Queries, or results of attention: [tokens, heads, head_dim], head_dim contiguous, any alignment.
struct HeadsView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;      // 8 to 1024, a multiple of 8
  int64_t token_stride = 0;  // elements from a token to the next; zero and negative are legal
  int64_t head_stride = 0;   // elements from a head to the next; zero and negative are legal
};

// Scales of elements: element (page, token, head, i) has the value code * (scale(page, token, head,
// i / group) / divisor) in f32, where `code` is what the pool stores. Without data every scale is
// 1. With a stride of 0 one scale serves a whole axis; with all four strides 0, the whole tensor. A
// NaN scale makes the results that use it NaN.
struct KvScales {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // f32, f16, bf16 or e8m0
  int64_t page_stride = 0;    // in elements
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  int64_t group_stride = 0;
  int64_t group = 0;     // elements of a row that share a scale: 32, 64 or 128, a divisor of
                         // head_dim; 0: the whole row
  float divisor = 1.0f;  // positive; JAX's quantization_utils uses 127.5
};

// The format of a pool's rows: elements of a dtype, or GGUF's blocks of 32 elements, each block
// with its own scale (and some with an offset).
enum class KvFormat : uint8_t { kPlain, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kIQ4NL };
inline constexpr int kNumKvFormats = 7;

// Bytes of a block of 32 elements; 0 for kPlain.
constexpr int64_t BlockBytes(KvFormat format) {
  constexpr int64_t kBytes[kNumKvFormats] = {0, 34, 18, 20, 22, 24, 18};
  return kBytes[static_cast<int>(format)];
}

constexpr const char* Name(KvFormat format) {
  constexpr const char* kNames[kNumKvFormats] = {"plain", "q8_0", "q4_0",  "q4_1",
                                                 "q5_0",  "q5_1", "iq4_nl"};
  return static_cast<int>(format) < kNumKvFormats ? kNames[static_cast<int>(format)]
                                                  : "an unknown format";
}

// The keys, or the values, of every page of the pool. Element (page, token, head, i) is at page *
// page_stride + token * token_stride + head * head_stride + i, so the layouts in use are all views:
// HND [pages, kv_heads, page_size, d] (vLLM CPU, FlashInfer), NHD [pages, page_size, kv_heads, d]
// (FlashInfer, sglang) and [kv_heads, pages, page_size, d] (JAX). For a block format, dtype is kU8,
// strides are in bytes, and a row is head_dim / 32 blocks at any address.
struct PagedKv {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // f32, f16, bf16, e4m3, e5m2 or i8; u8 for a block format
  int64_t num_pages = 0;
  int64_t page_size = 0;  // tokens per page, at least 1; a contiguous cache [B, S, heads, d] is B
                          // pages of S tokens
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t page_stride = 0;  // the three strides are in elements
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  KvScales scales = {};  // for e4m3, e5m2 and i8 only
  KvFormat format = KvFormat::kPlain;
};

// Bytes of a row of head_dim elements.
constexpr int64_t RowBytes(const PagedKv& kv) {
  return kv.format == KvFormat::kPlain ? kv.head_dim * static_cast<int64_t>(SizeOf(kv.dtype))
                                       : kv.head_dim / 32 * BlockBytes(kv.format);
}

// B sequences. The q_len = cu_q_lens[b+1] - cu_q_lens[b] queries of sequence b are its last tokens:
// query i is at position kv_lens[b] - q_len + i. There may be more queries than keys only if
// positions hide no key (neither causal nor a window: cross attention) or kv_len is 0.
struct PagedBatch {
  IndexSpan cu_q_lens;      // [B + 1], from 0 to the number of tokens; empty: one query a sequence
                            // (decode). Like the next two, int32 or int64
  IndexSpan kv_lens;        // [B], the length of each sequence, its queries included
  IndexPointer page_table;  // [B, max_pages]; entries past ceil(kv_len / page_size) of a row are
                            // ignored
  int64_t max_pages = 0;
  int64_t page_table_stride = 0;  // elements from a row to the next
  // [B] or empty: a sequence whose flag is not 0 is causal even if AttentionOptions::causal is not
  // set, and its window_right is 0.
  std::span<const uint8_t> causal = {};
};

// Hides keys from queries, or adds to their logits. A query sees a key only if the mask, causal and
// the windows below all allow it. Element (token, head, key) is at token * token_stride + head *
// head_stride + key * key_stride; `key` is a position in the sequence.
struct AttentionMask {
  const void* data = nullptr;  // null: no mask
  // f32, f16 or bf16: added to the scaled and capped logit; -inf hides the key, whatever key and
  // value hold. u8: 0 hides the key, any other value changes nothing (bool arrays have this form).
  DType dtype = DType::kF32;
  int64_t tokens = 0;        // q.tokens, or 1: the same for all
  int64_t heads = 0;         // q.heads, or 1: the same for all
  int64_t keys = 0;          // at least the largest kv_len
  int64_t token_stride = 0;  // elements; any value
  int64_t head_stride = 0;
  int64_t key_stride = 1;
};

struct AttentionOptions {
  std::optional<float> scale = {};  // of the logits; default 1 / sqrt(head_dim)
  // true: a query at position p sees keys 0..p; false: all keys, unless PagedBatch::causal is set.
  bool causal = true;
  // w >= 1: a query at position p sees no key before p-w+1 and, unless window_right is set, none
  // after p (causal or not).
  std::optional<int64_t> window = {};
  // r >= 0: a query at position p sees no key after p+r, with or without a window. If causal is
  // set, window_right must be 0 or unset, which then means 0.
  std::optional<int64_t> window_right = {};
  std::optional<float> soft_cap = {};  // c > 0: a scaled logit x becomes c * tanh(x / c)
  // [q_heads] or empty: one raw logit per head, neither scaled nor capped, that counts in the
  // softmax and in lse but has no value vector.
  std::span<const float> sinks = {};
  // Blocks of 64 keys that the mask hides from all queries computed together are not even read.
  AttentionMask mask;
  // [q_heads] or empty: slope * (key position - query position) is added to scaled and capped
  // logits (ALiBi, Press et al. 2022).
  std::span<const float> alibi_slopes;
  // true: f32 and f16 queries, and with them probabilities, may be rounded to bf16, so that bf16
  // dot products are used wherever bf16 queries would use them (see PagedAttention). Elsewhere this
  // changes nothing. Results keep the dtype of q.
  bool bf16_products = false;
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// Results [tokens, q_heads, head_dim of values] in the dtype of q, and their log-sum-exp.
struct AttentionOut {
  void* data = nullptr;
  int64_t token_stride = 0;      // elements
  int64_t head_stride = 0;       // elements
  float* lse = nullptr;          // [tokens, q_heads], natural log; optional
  int64_t lse_token_stride = 0;  // elements; heads are contiguous
};

// Softmax(scale * q K^T) V for each query head. KV head h serves q_heads / kv_heads query heads,
// from number h * q_heads / kv_heads on.
//   q       [tokens, q_heads, head_dim of keys] f32|f16|bf16; tokens and B may be 0
//   keys, values  pools of the same num_pages, page_size and kv_heads; head_dim, dtype, scales,
//                 format and strides may differ. Values may be a part of their keys (MLA: the same
//                 strides, dtype and format, data inside a key's row); memory is then read once.
// A query that sees no key (kv_len = 0, whatever its q_len) gets zeros and lse = -inf, or lse = the
// sink. Slots beyond kv_len are never read. Accumulation and softmax are in f32. Probabilities
// (times the scales of values, if any) are rounded to bf16 before they multiply values if three
// conditions hold: q is bf16 or options.bf16_products is set; the elements of keys and values are
// exact in bf16 (bf16, e4m3, e5m2, int8, Q8_0, Q4_0, Q5_0, IQ4_NL); the target has bf16 dot
// products. Elements of keys and values are never rounded. A NaN that a query sees makes its result
// NaN; so do sums of products and logits that overflow f32. Any positive soft_cap works: a tiny one
// makes all logits equal, a huge one leaves them as they are. Throws Error: kBadShape, kBadDType,
// kBadOption, kBadRange (lengths), kBadPage, kOverlap, kOutOfMemory. Nothing is written on error.
// Allocates nothing once the pool's scratch has grown. Source of the method: Kwon et al. 2023
// (paged attention), Milakov and Gimelshein 2018 (online softmax), Dao 2023 (split-KV).
RIFFLE_API void PagedAttention(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                               const PagedBatch& batch, const AttentionOut& out,
                               const AttentionOptions& options = {});

// What all calls on one batch need: a checked copy of the batch and the division of its work. Made
// once per batch and passed to every layer's call, it saves each call reading the page table and
// planning:
//
//   AttentionPlan plan(q, cache.Keys(0), batch, options);
//   for (layer ...) PagedAttention(q, cache.Keys(layer), cache.Values(layer), plan, out, options);
//
// Results have the same bits as without a plan. The caller's arrays may change or disappear
// afterwards; the plan keeps the batch as it was. Several calls may use one plan at the same time.
class RIFFLE_API AttentionPlan {
 public:
  AttentionPlan();  // has no batch until Make
  // A plan depends on the shapes of q and keys (not on their data or dtype), and on causal, window,
  // window_right and the mask. The number of threads of the pool decides how work is divided, but
  // changes no result. The plan records which blocks the mask hides, so calls must pass the same
  // mask with the same elements. Throws Error as PagedAttention does.
  AttentionPlan(const HeadsView& q, const PagedKv& keys, const PagedBatch& batch,
                const AttentionOptions& options = {});
  ~AttentionPlan();
  AttentionPlan(AttentionPlan&&) noexcept;
  AttentionPlan& operator=(AttentionPlan&&) noexcept;

  // Plans another batch, reusing the plan's memory. After an error the plan has no batch.
  void Make(const HeadsView& q, const PagedKv& keys, const PagedBatch& batch,
            const AttentionOptions& options = {});

 private:
  friend void PagedAttention(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                             const AttentionPlan& plan, const AttentionOut& out,
                             const AttentionOptions& options);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// PagedAttention on the batch of a plan. Throws Error: kBadShape if tokens, heads, head_dim, pages
// or their size differ from the plan's, kBadOption if causal or a window does.
RIFFLE_API void PagedAttention(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                               const AttentionPlan& plan, const AttentionOut& out,
                               const AttentionOptions& options = {});

// A result over some of the keys.
struct AttentionPart {
  HeadsView out;
  const float* lse = nullptr;    // [tokens, heads], natural log; -inf or +inf: an empty part
  int64_t lse_token_stride = 0;  // elements; heads are contiguous
};

// Merges results over disjoint parts of the keys into what one call over all keys would have given,
// up to rounding: sharded and cascaded attention. All parts have the same shape, and out's dtype.
// An lse of -inf, or of +inf as some engines write it, marks an empty part, whose out is ignored.
// If all parts are empty the result is zeros and -inf. Parts are merged in their order. Sinks, if
// any, belong in exactly one part.
// Throws Error: kBadShape (no part, shapes that differ), kBadDType, kOverlap. Nothing is written on
// error.
RIFFLE_API void MergeStates(std::span<const AttentionPart> parts, const AttentionOut& out,
                            const CallOptions& options = {});

}  // namespace riffle
