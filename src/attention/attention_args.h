// What kernels are given: checked once at the entry point, trusted below it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/attention_plan.h"
#include "attention/mask_args.h"
#include "attention/row_code.h"
#include "riffle/types.h"

namespace riffle::attention {

// PagedKv in bytes.
struct KvBytes {
  const uint8_t* data;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
};

// PagedKv and KvScales in bytes. The scales of a block format lie in its rows.
struct KvPages : KvBytes {
  RowCode code;
  int dim;                 // elements of a row
  size_t row_bytes;        // bytes of a row, from its first element to its last one
  int scales_per_row;      // 0: none
  int elements_per_scale;  // dim if a row has fewer than two scales
  KvBytes scales;
  int64_t scale_group_stride;
  DType scale_dtype;
  float scale_divisor;
};

struct AttentionArgs {
  const uint8_t* q;  // strides in bytes
  DType q_dtype;
  bool bf16_products;  // q may be rounded to bf16
  int64_t q_token_stride;
  int64_t q_head_stride;

  KvPages keys;
  KvPages values;
  bool values_in_keys;  // every value is a part of its key's row: read with it, not again
  int page_size;
  int page_shift;  // log2 of page_size, or -1 if that is not a power of two

  const int32_t* page_numbers;  // of all sequences; those of b from page_begin[b] on
  const int64_t* page_begin;    // [B]
  const int32_t* kv_lens;       // [B]
  const int32_t* cu_q_lens;     // [B + 1], or null: one query a sequence
  const uint8_t* causal;        // [B], or null: as `shape` says

  AttentionShape shape;

  float scale;         // of the logits
  float soft_cap;      // 0: none
  const float* sinks;  // [q_heads] or null
  bool lse_without_sinks;
  MaskArgs mask;
  const float* slopes;  // [q_heads] or null

  uint8_t* out;  // strides in bytes, dtype of q
  int64_t out_token_stride;
  int64_t out_head_stride;
  float* lse;  // or null
  int64_t lse_token_stride;

  // The sign of `scale`, or 0: multiplies queries, so that the factor of scores is positive.
  float scale_sign() const { return scale < 0 ? -1.0f : scale == 0 ? 0.0f : 1.0f; }
  // Whether anything is added to logits.
  bool biased() const { return mask.data != nullptr || slopes != nullptr; }
  // Bytes that a key and its value take in memory.
  size_t kv_row_bytes() const { return keys.row_bytes + (values_in_keys ? 0 : values.row_bytes); }
  // Keys that the query at `position` of a sequence sees.
  KeyRange VisibleKeys(int seq, int position) const {
    return attention::VisibleKeys(causal != nullptr && causal[seq] != 0 ? Causal(shape) : shape,
                                  kv_lens[seq], position);
  }
  int first_token(int seq) const { return cu_q_lens != nullptr ? cu_q_lens[seq] : seq; }
  int q_len(int seq) const {
    return cu_q_lens != nullptr ? cu_q_lens[seq + 1] - cu_q_lens[seq] : 1;
  }
};

// Floats that `state_rows` rows of partial states take (PartialStateRows). The state that a work
// item leaves for the merge is sums [heads][rows][columns], maxima [heads][rows], weights
// [heads][rows]; `columns` are those of values, padded.
inline int64_t PartialStateFloats(int64_t state_rows, int columns) {
  return state_rows * (columns + 2);
}

}  // namespace riffle::attention
