// What kernels are given: checked once at the entry point, trusted below it.
#pragma once

#include <cstdint>

#include "attention/attention_plan.h"
#include "riffle/types.h"

namespace riffle::attention {

// PagedKv in bytes.
struct KvBytes {
  const uint8_t* data;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
};

// PagedKv and KvScales in bytes.
struct KvPages : KvBytes {
  KvBytes scales;
  float scale_divisor;
};

struct AttentionArgs {
  const uint8_t* q;  // strides in bytes
  DType q_dtype;
  int64_t q_token_stride;
  int64_t q_head_stride;

  KvPages keys;
  KvPages values;
  DType kv_dtype;  // of the scales if int8
  bool kv_int8;
  int page_size;

  const int32_t* page_numbers;  // of all sequences; those of b from page_begin[b] on
  const int64_t* page_begin;    // [B]
  const int32_t* kv_lens;       // [B]
  const int32_t* cu_q_lens;     // [B + 1], or null: one query a sequence

  AttentionShape shape;

  float scale;         // of the logits
  float soft_cap;      // 0: none
  const float* sinks;  // [q_heads] or null

  uint8_t* out;  // strides in bytes, dtype of q
  int64_t out_token_stride;
  int64_t out_head_stride;
  float* lse;  // or null
  int64_t lse_token_stride;

  size_t kv_row_bytes() const {
    return static_cast<size_t>(shape.head_dim) * (kv_int8 ? 1 : SizeOf(kv_dtype));
  }
  int first_token(int seq) const { return cu_q_lens != nullptr ? cu_q_lens[seq] : seq; }
  int q_len(int seq) const {
    return cu_q_lens != nullptr ? cu_q_lens[seq + 1] - cu_q_lens[seq] : 1;
  }
};

// A state that a work item leaves for the merge: sums [heads][rows][PaddedDim], then maxima
// [heads][rows] and weights [heads][rows]; the next state is aligned to 64 bytes again.
inline int64_t PartialStateFloats(int heads, int rows, int head_dim) {
  return (static_cast<int64_t>(heads) * rows * (PaddedDim(head_dim) + 2) + 15) / 16 * 16;
}

}  // namespace riffle::attention
