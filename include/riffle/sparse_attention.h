// Attention of each query over the rows that it names, usually the rows that an indexer has
// selected for it (riffle/indexer.h).
//
// One row serves all heads; it is the key, and its first value_dim elements are the value, as in
// multi-head latent attention (DeepSeek-V3.2: 576 and 512) or where keys are values (DeepSeek-V4:
// 512 and 512).
//
// Bitwise invariance, per SIMD target: a query's result does not depend on the batch, the threads,
// the pages, or the order in which its rows are named. Rows are processed in ascending order of
// slot, scope by scope, as PagedAttention processes the keys of a sequence: where the rows of a
// query, in that order, are the keys of a sequence, both give the same bits.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "riffle/attention.h"
#include "riffle/export.h"
#include "riffle/indices.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

enum class SparseRowFormat : uint8_t {
  kPlain,   // row_dim elements of a dtype, or of a block format: those of PagedKv
  kMla656,  // DeepSeek-V3.2, 576 elements: 512 e4m3, four f32 scales (one for each 128), then 64
            // bf16
  kMla584,  // DeepSeek-V4, 512 elements: pages of page_size x (448 e4m3, 64 bf16), then page_size
            // x (seven e8m0 scales, one for each 64, and a byte of padding)
};

constexpr const char* Name(SparseRowFormat format) {
  return format == SparseRowFormat::kPlain    ? "plain"
         : format == SparseRowFormat::kMla656 ? "mla656"
         : format == SparseRowFormat::kMla584 ? "mla584"
                                              : "an unknown format";
}

// A pool of rows. Slot s is row s % page_size of page s / page_size: row_stride and page_stride
// elements apart (bytes where dtype is u8).
struct SparseRows {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // kPlain: f32, f16, bf16, e4m3, e5m2 or i8; u8 for a block format and
                              // for the other SparseRowFormats
  int64_t slots = 0;          // rows of the pool
  int64_t row_dim = 0;        // kPlain: 32 to 1024, a multiple of 16; kMla656: 576; kMla584: 512
  int64_t row_stride = 0;     // ignored for kMla584
  int64_t page_size = 0;      // 0: one page of all rows (not for kMla584)
  int64_t page_stride = 0;
  SparseRowFormat format = SparseRowFormat::kPlain;
  KvScales scales = {};  // kPlain with e4m3, e5m2 or i8: those of a row are at page * page_stride +
                         // (row in its page) * token_stride; head_stride is ignored
  KvFormat blocks = KvFormat::kPlain;  // kPlain: a block format, row_dim a multiple of 32
};

// Rows of one pool that the queries name.
struct SparseScope {
  SparseRows rows;
  const int32_t* slots = nullptr;  // [tokens, cols]; -1: none. A slot named twice counts twice
  int64_t cols = 0;
  int64_t slots_stride = 0;          // elements from a token to the next
  const int32_t* lengths = nullptr;  // [tokens], 0..cols: later slots are not read; null: cols
};

struct SparseAttentionOptions {
  std::optional<float> scale = {};  // of the logits; default 1 / sqrt(row_dim)
  // A multiple of 16, and of the elements that share a scale, at most row_dim; 0: row_dim.
  int64_t value_dim = 0;
  // [heads] or empty: a raw logit per head that takes part in the softmax but has no value; -inf
  // changes nothing, +inf leaves zeros.
  std::span<const float> sinks = {};
  bool lse_with_sinks = true;
  bool ignore_invalid = false;  // slots below -1 or past the pool: skipped, not an error
  ThreadPool* pool = nullptr;   // null: DefaultPool()
};

// out[t, h] = softmax over the named rows r of (scale * q[t, h] . r) times r[:value_dim].
//   q       [tokens, heads, row_dim] f32|f16|bf16, 1 to 1024 heads
//   scopes  one or more, of one row_dim; DeepSeek-V4 has two: a window and compressed entries
//   out     [tokens, heads, value_dim] in the dtype of q; lse as PagedAttention's
// A query that names no row gets zeros and lse = -inf, or lse = the sink. Rows that no query names
// are never read. Accumulation and softmax are in f32. If all scopes have plain rows of one format,
// the arithmetic is PagedAttention's. Otherwise, if q is bf16, all rows are bf16, mla656 or mla584,
// and the target has bf16 dot products, rows are decoded to bf16 (exact where their scales are
// powers of two) and probabilities are rounded to bf16; else everything is f32. A NaN in a row that
// a query names makes its result NaN. Throws Error: kBadShape, kBadDType, kBadOption, kBadRange
// (lengths), kBadPage (slots), kOverlap, kOutOfMemory. Nothing is written on error. Allocates
// nothing once the pool's scratch has grown. Source of the method: DeepSeek-V3.2, FlashMLA (its
// layouts); Milakov and Gimelshein 2018.
RIFFLE_API void SparseAttention(const HeadsView& q, std::span<const SparseScope> scopes,
                                const AttentionOut& out,
                                const SparseAttentionOptions& options = {});

// A pool of coded rows to write to, with the members of SparseRows, to which it converts.
struct SparseRowsOut {
  void* data = nullptr;
  int64_t slots = 0;
  int64_t row_stride = 0;  // bytes; ignored for kMla584
  int64_t page_size = 0;   // 0: one page of all rows (not for kMla584)
  int64_t page_stride = 0;
  SparseRowFormat format = SparseRowFormat::kMla656;  // or kMla584

  // The pool as SparseAttention reads it.
  operator SparseRows() const {  // NOLINT(google-explicit-constructor): the same pool, read
    const int64_t dim = format == SparseRowFormat::kMla656 ? 576 : 512;
    return {data, DType::kU8, slots, dim, row_stride, page_size, page_stride, format};
  }
};

struct WriteSparseRowsOptions {
  // kMla656: rounds scales up to powers of two, as DeepSeek's are; rows are then exact in bf16. The
  // scales of kMla584 always are powers of two.
  bool power_of_two_scales = true;
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// Writes rows x [tokens, 576 or 512] f32|f16|bf16 to slots (int32 or int64); -1 skips a row; of
// equal slots the later one wins. x is after RoPE. The first 512 elements (kMla584: 448) become
// e4m3: scale = max(max|x|, 1e-4) / 448 of each 128 (64), code = x / scale to the nearest even, in
// f32; the last 64 become bf16, to the nearest even. Elements that are not finite make their scale
// NaN, and so the results of queries that name their row. The same bits on every SIMD target. Plain
// rows are written as any matrix is, or by WriteKv. Throws Error: kBadShape, kBadDType, kBadOption,
// kBadPage (slots), kOverlap. Nothing is written on error. Allocates nothing.
RIFFLE_API void WriteSparseRows(const MatrixView& x, IndexSpan slots, const SparseRowsOut& rows,
                                const WriteSparseRowsOptions& options = {});

}  // namespace riffle
