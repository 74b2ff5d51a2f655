// What the indexer's kernels are given: checked once at the entry point, trusted below it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "core/scratch_layout.h"
#include "riffle/indexer.h"

namespace riffle::sparse {

inline constexpr int kTileKeys = 64;    // keys that are packed and scored at a time
inline constexpr int kQueryBlock = 16;  // queries of a work item: they share the packed keys
inline constexpr int kMaxIndexHeads = 128;
inline constexpr int kMaxIndexDim = 256;

// The arithmetic of q . k. An operand is 32 bits of a row of q or of a key: one f32, two bf16 or
// four int8.
enum class Product : uint8_t { kF32, kBF16, kInt8 };

constexpr int ElementsPerOperand(Product product) {
  return product == Product::kF32 ? 1 : product == Product::kBF16 ? 2 : 4;
}

// The keys that a query may see: [begin, end) of its sequence, or of the keys of its candidates.
struct QueryRange {
  int32_t seq;
  int32_t begin;
  int32_t end;
};

struct IndexerArgs {
  const uint8_t* q = nullptr;
  DType q_dtype = DType::kF32;
  int64_t q_token_stride = 0;  // bytes
  int64_t q_head_stride = 0;   // bytes
  int heads = 0;
  int head_dim = 0;
  const float* weights = nullptr;  // null: all 1
  int64_t weight_stride = 0;       // elements
  bool relu = true;

  const uint8_t* keys = nullptr;
  DType key_dtype = DType::kF32;
  bool mxfp4 = false;     // `scales` are then four e8m0 a key, one for each 32 elements
  int64_t key_bytes = 0;  // of a row
  int64_t page_size = 1;
  int64_t page_stride = 0;                // bytes
  int64_t token_stride = 0;               // bytes
  const uint8_t* scales = nullptr;        // f32 of any alignment; null: all 1
  int64_t scale_page_stride = 0;          // bytes
  int64_t scale_token_stride = 0;         // bytes
  const int32_t* page_numbers = nullptr;  // of all sequences; those of b from page_begin[b] on
  const int64_t* page_begin = nullptr;    // [B]

  const QueryRange* ranges = nullptr;  // [tokens]
  // Null: all keys may be selected. Else only those of blocks [tokens][candidate_stride] of
  // candidate_block keys, ascending: a query's key i is then key i % candidate_block of the block
  // candidates[i / candidate_block].
  const int32_t* candidates = nullptr;
  int64_t candidate_stride = 0;
  int64_t candidate_block = 1;
  Product product = Product::kF32;

  int operands() const { return head_dim / ElementsPerOperand(product); }
};

// Queries of one sequence whose keys are scored together.
struct QueryGroup {
  int32_t begin = 0;  // tokens
  int32_t end = 0;
};

// A work item: the queries of a group and a part of their keys.
struct IndexerItem {
  QueryGroup queries;
  int32_t begin = 0;  // keys
  int32_t end = 0;
  int64_t index = 0;  // group * splits + split
};

// A thread's memory while it scores.
struct ScoreScratch {
  core::ScratchArray<uint32_t> q;      // [kQueryBlock][head groups][operands][heads of a group]
  core::ScratchArray<float> weights;   // [kQueryBlock][kMaxIndexHeads]
  core::ScratchArray<int32_t> starts;  // likewise; int8: what the sums begin with
  core::ScratchArray<uint32_t> tile;   // [panels][operands][keys of a panel]
  core::ScratchArray<uint32_t> rows;   // [kTileKeys][operands]: keys that had to be converted
  core::ScratchArray<float> scales;    // [kTileKeys]
  core::ScratchArray<float> logits;    // [kTileKeys]
  int64_t query_operands = 0;          // operands of a query
  size_t bytes = 0;
};
ScoreScratch PlanScoreScratch(int heads, int operands);

// What IndexerTopK selects.
struct SelectArgs {
  int64_t k = 0;
  int64_t block = 1;
  BlockScore block_score = BlockScore::kMax;
  int64_t first_blocks = 0;
  int64_t local_blocks = 0;
  bool incomplete_tail = false;
  bool slots = false;
  const int32_t* visible = nullptr;  // [tokens] number of keys that the query sees
  OutView<int32_t> indices;

  int64_t Blocks(int64_t token) const { return (visible[token] + block - 1) / block; }
  // Forced members of a query: blocks [0, Head) and [Blocks - Tail, Blocks).
  int64_t Head(int64_t token) const { return std::min(first_blocks, Blocks(token)); }
  int64_t Tail(int64_t token) const {
    const int64_t tail = incomplete_tail && visible[token] % block != 0
                             ? std::max<int64_t>(local_blocks, 1)
                             : local_blocks;
    return std::min(tail, Blocks(token) - Head(token));
  }
};

// The lists of candidates for the answers, which a thread keeps while it scores an item, and memory
// for sorting them. Placed after the ScoreScratch.
struct SelectScratch {
  int64_t limit = 0;                       // candidates of a query that survive an item, at most
  int64_t capacity = 0;                    // of the list while the item runs
  core::ScratchArray<int32_t> order_keys;  // [kQueryBlock][stride]
  core::ScratchArray<int32_t> blocks;      // likewise
  core::ScratchArray<int64_t> counts;      // [kQueryBlock]
  core::ScratchArray<int32_t> bounds;      // [kQueryBlock]
  core::ScratchArray<uint64_t> pairs;      // of the sort
  core::ScratchArray<int32_t> merged_order_keys;  // where items of one query are merged
  core::ScratchArray<int32_t> merged_blocks;
  int64_t stride = 0;
  size_t bytes = 0;
};
SelectScratch PlanSelectScratch(int64_t k, int64_t max_blocks, int64_t splits, size_t begin);

// The candidates that items leave in shared memory where the keys of a group are split.
struct SplitCandidates {
  int64_t* counts = nullptr;               // [items][kQueryBlock]
  std::atomic<int32_t>* bounds = nullptr;  // [tokens] an order key that k scores are known to reach
  int32_t* order_keys = nullptr;           // [items][kQueryBlock][limit], of scores
  int32_t* blocks = nullptr;               // likewise
};

}  // namespace riffle::sparse
