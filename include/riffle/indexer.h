// The indexer of sparse attention: a small score for every (query, key), and the exact top-k of
// these scores, which picks the few thousand keys of a long context that attention then reads
// (DeepSeek's DSA, and its relatives). sparse_attention.h has that attention.
//
//   I[t, s] = scale(s) * sum over heads h of  w[t, h] * act(q[t, h] . k[s])
//
// One key serves all heads. A query at position p sees the keys s < (p + 1) / ratio: with ratio 1
// its own position and those before it; with ratio 4 or 128, where a key stands for that many
// tokens, the keys whose tokens are all at or before p.
//
// Arithmetic. A score is a pure function of its query and its key: bitwise the same whatever the
// batch, threads, page size or SIMD vector length. The sum over heads is in f32, in ascending order
// of h, each product rounded before it is added; the key's scale is multiplied last. A NaN score is
// the quiet NaN 0x7fc00000.
//   int8 keys   q . k is an exact integer, so scores have the same bits on every SIMD target. If
//               q is not int8, it is rounded to int8, each head with a scale of its own, max|q| /
//               127, which is multiplied into w first.
//   others      f32 accumulation in a chain over head_dim. If bf16 holds q and keys exactly (bf16,
//               e4m3, MXFP4, int8) and the target has dot products of bf16 pairs (VDPBF16PS,
//               which treats denormals as zeros), the chain consists of these, otherwise of
//               fused multiply-adds in f32. Every run on a target gives the same bits.
// int8 after a Hadamard transform (WriteIndexKeys, Hadamard) is 4.2 times more precise than e4m3
// with power-of-two scales at the same number of bytes, and twice as fast: docs/sparse.md.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/attention.h"
#include "riffle/export.h"
#include "riffle/indices.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// How the index keys of a page lie in memory.
enum class IndexKeyFormat : uint8_t {
  kPlain,     // rows of a dtype, with strides; scales elsewhere
  kDeepGemm,  // page_size rows of e4m3, then page_size f32 scales: DeepGEMM's and vLLM's cache
  kMxFp4,  // page_size rows of head_dim / 2 bytes, two e2m1 each, the first in the low half; then
           // page_size x 4 bytes: for each key one e8m0 scale per 32 elements, then unused bytes.
           // head_dim is a multiple of 32 up to 128. DeepGEMM's FP4 cache
};
inline constexpr int kNumIndexKeyFormats = 3;

constexpr const char* Name(IndexKeyFormat format) {
  return format == IndexKeyFormat::kPlain      ? "plain"
         : format == IndexKeyFormat::kDeepGemm ? "deepgemm"
         : format == IndexKeyFormat::kMxFp4    ? "mxfp4"
                                               : "an unknown format";
}

// Scales of index keys: data[page * page_stride + token * token_stride] is that of key `token` of
// page `page`. Without data every scale is 1.
template <typename T>
struct IndexScales {
  T* data = nullptr;
  int64_t page_stride = 0;  // elements
  int64_t token_stride = 0;
};

// The index keys of every page of a pool: key `token` of page `page` is head_dim elements from
// page * page_stride + token * token_stride on. A matrix of keys is a pool of one page.
struct IndexKeys {
  const void* data = nullptr;
  DType dtype = DType::kF32;  // kPlain: f32, f16, bf16, e4m3 or i8; else u8
  int64_t num_pages = 0;
  int64_t page_size = 0;                 // keys of a page, at least 1
  int64_t head_dim = 0;                  // 32 to 256, a multiple of 16
  int64_t page_stride = 0;               // elements
  int64_t token_stride = 0;              // elements; of kPlain only
  IndexScales<const float> scales = {};  // kPlain; int8 must have them
  IndexKeyFormat format = IndexKeyFormat::kPlain;
};

// w [tokens, heads], heads contiguous; without data all weights are 1.
struct IndexWeights {
  const float* data = nullptr;
  int64_t token_stride = 0;  // elements
};

enum class IndexActivation : uint8_t { kRelu, kNone };

struct IndexerOptions {
  IndexActivation activation = IndexActivation::kRelu;
  int64_t ratio = 1;           // tokens that a key stands for, at least 1
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// A matrix of scores [tokens, cols].
struct IndexLogitsOut {
  float* data = nullptr;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements
};

// Scores of every key that a query sees; -inf in the columns after them.
//   q      [tokens, heads, head_dim] f32|f16|bf16|e4m3|i8, 1 to 128 heads
//   batch  riffle/attention.h; kv_lens are in tokens, page_table is of key pages: sequence b has
//          kv_lens[b] / ratio keys. There may be more queries than tokens: a query before position
//          0 sees no key.
//   out    column s is key s of the query's sequence; cols is at least the largest number of keys
//          that any query sees (MaxIndexKeys)
// Throws Error: kBadShape, kBadDType, kBadOption, kBadRange, kBadPage, kOverlap, kOutOfMemory.
// Nothing is written on error. Allocates nothing once the pool's scratch has grown.
// Source of the method: DeepSeek-V3.2 (lightning indexer), DeepGEMM (its layout).
RIFFLE_API void IndexerLogits(const HeadsView& q, const IndexWeights& weights,
                              const IndexKeys& keys, const PagedBatch& batch,
                              const IndexLogitsOut& out, const IndexerOptions& options = {});

// The same over a matrix of keys (keys.num_pages = 1), of which query t sees [starts[t], ends[t]):
// DeepGEMM's form for prefill, where the keys of one sequence follow those of another. Column s is
// key s; columns outside of the range are -inf. options.ratio must be 1.
RIFFLE_API void IndexerLogits(const HeadsView& q, const IndexWeights& weights,
                              const IndexKeys& keys, std::span<const int32_t> starts,
                              std::span<const int32_t> ends, const IndexLogitsOut& out,
                              const IndexerOptions& options = {});

// The largest number of keys that any query of the batch sees.
RIFFLE_API int64_t MaxIndexKeys(const PagedBatch& batch, int64_t ratio = 1);

// How the scores of a block's keys become one score. The last block may have fewer keys.
enum class BlockScore : uint8_t {
  kMax,   // the first in the order of riffle/topk.h
  kMean,  // their sum in ascending order of keys, in f32, divided by their number
};

struct IndexTopKOptions {
  IndexActivation activation = IndexActivation::kRelu;
  int64_t ratio = 1;
  // Keys of a block. Above 1, blocks are selected instead of keys; a query that sees n keys has
  // ceil(n / block) of them.
  int64_t block = 1;
  BlockScore block_score = BlockScore::kMax;
  // Forced members: selected first, in ascending order, whatever their scores; together at most
  // k.
  int64_t first_blocks = 0;
  int64_t local_blocks = 0;      // the last blocks that the query sees
  bool incomplete_tail = false;  // the last block if it has fewer than `block` keys
  // [tokens, candidate_cols] int32: only these blocks, and the forced ones, may be selected. In any
  // order; -1, blocks that the query does not see and repetitions are ignored.
  const int32_t* candidates = nullptr;
  int64_t candidate_cols = 0;
  int64_t candidate_stride = 0;  // elements from a token to the next
  // The number of neighbours that a candidate stands for: candidate c means blocks [c *
  // candidate_span, (c + 1) * candidate_span). DeepSeek-V4.1's second level has runs of 8.
  int64_t candidate_span = 1;
  bool slots = false;  // returns page * page_size + offset instead of positions; block must be 1
  ThreadPool* pool = nullptr;
};

// The k best keys, or blocks of keys, of each query, best first, then -1: what TopKPerRow with
// index_order_if_short gives on the result of IndexerLogits; ties go to the lower position. Scores
// are not stored: tiles of keys are scored, compared with a bound that k scores are known to reach,
// and discarded. If no more than k members may be selected, nothing is scored: the answer has all
// of them in ascending order.
//   indices  [tokens, k] int32
// Throws Error: kBadK unless 1 <= k < 2^31 - 1, and as IndexerLogits.
RIFFLE_API void IndexerTopK(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
                            const PagedBatch& batch, int64_t k, const OutView<int32_t>& indices,
                            const IndexTopKOptions& options = {});

// The index keys of a pool, to be written.
struct IndexKeysOut {
  void* data = nullptr;
  DType dtype = DType::kF32;  // kPlain: f32, f16, bf16, e4m3 or i8; else u8
  int64_t num_pages = 0;
  int64_t page_size = 0;
  int64_t head_dim = 0;
  int64_t page_stride = 0;  // elements
  int64_t token_stride = 0;
  IndexScales<float> scales = {};  // kPlain: e4m3 and i8 must have them, other dtypes must not
  IndexKeyFormat format = IndexKeyFormat::kPlain;
};

struct WriteIndexKeysOptions {
  // Transforms the keys first (head_dim: a power of two). The queries must be transformed too, by
  // Hadamard: q . k stays the same, and a few large elements spread over all, which suits int8.
  bool hadamard = true;
  // e4m3: rounds scales up to powers of two, as DeepSeek's ("ue8m0") are.
  bool power_of_two_scales = true;
  ThreadPool* pool = nullptr;
};

// Writes keys x [tokens, head_dim] f32|f16|bf16, after RoPE, to slots = page * page_size + offset;
// -1 skips a key; if slots are equal, the last key wins.
//   int8  scale = max|x| / 127, code = x * (127 / max|x|) to the nearest even
//   e4m3  scale = max(max|x|, 1e-4) / 448, code = x / scale to the nearest even
//   MXFP4 scale = max(max|x|, 1e-4) / 6 of each 32 elements, rounded up to a power of two; code = x
//         / scale to the nearest even
// all in f32. A key that is not finite gets the scale NaN, so that its scores are NaN. Throws Error
// as IndexerLogits.
RIFFLE_API void WriteIndexKeys(const MatrixView& x, IndexSpan slots, const IndexKeysOut& keys,
                               const WriteIndexKeysOptions& options = {});

// out = H x of each row, H the orthonormal Walsh-Hadamard matrix (Sylvester's order); columns are a
// power of two, 1 to 32768. Sums in f32, the same bits on every SIMD target; out has x's dtype,
// f32, f16 or bf16, and may be x itself.
RIFFLE_API void Hadamard(const MatrixView& x, const OutView<void>& out,
                         const CallOptions& options = {});

struct PositionsView {
  const int32_t* data = nullptr;
  int64_t tokens = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements
};
struct PageTableView {
  IndexPointer data;  // [sequences, max_pages]
  int64_t sequences = 0;
  int64_t max_pages = 0;
  int64_t row_stride = 0;  // elements
  int64_t page_size = 0;
};

// slots[t, i] = page_table[b, p / page_size] * page_size + p % page_size with p = positions[t, i],
// where b is the sequence of token t; -1 where p is negative or past the table's pages, or where
// the table's entry is negative (not filled).
//   positions, slots  [tokens, cols] int32; they may be the same memory
//   cu_q_lens         empty: one token a sequence; its last element is the number of tokens
// Throws Error: kBadShape, kBadRange, kOverlap; kBadPage where a slot is beyond int32.
RIFFLE_API void PositionsToSlots(const PositionsView& positions, const PageTableView& table,
                                 IndexSpan cu_q_lens, const OutView<int32_t>& slots);

// Positions of blocks: positions[t, i * block + j] = blocks[t, i] * block + j; -1 where blocks[t,
// i] is negative or the position is not below ends[t]. Use it after IndexerTopK with options.block
// > 1; ends[t] is the number of keys that query t sees.
//   blocks     [tokens, cols] int32
//   positions  [tokens, cols * block] int32
// Throws Error: kBadShape, kBadOption (block), kBadRange (a negative end), kOverlap.
RIFFLE_API void ExpandBlocks(const PositionsView& blocks, int64_t block,
                             std::span<const int32_t> ends, const OutView<int32_t>& positions);

}  // namespace riffle
