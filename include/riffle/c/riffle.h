// Riffle for C, and for every language that calls C. Each function does what the C++ function of
// the same name does (riffle/topk.h and its neighbours say what that is, and its limits), with the
// same bits.
//
// Failures. A function that can fail returns a status. When it is not RIFFLE_OK, nothing has been
// written, and riffle_error_message() has the text, which names the argument, its value and the
// limit. No exception leaves the library.
//
// Growth. What these headers declare does not change: later versions add functions, constants and
// members at the end of those structs whose first member is `size`. The caller sets it to the
// sizeof of the struct that it was compiled with. Members that the caller has but the library does
// not know must be zero, else RIFFLE_BAD_OPTION. Structs without `size` never change, nor do
// `reserved` members, which must be 0.
//
// Zero is the default of every member of an options struct, and a null pointer to options stands
// for all defaults:
//
//   riffle_topk_options options = {.size = sizeof options};
//   options.smallest = 1;
//
// Strides are in elements (for a block format in bytes) and may be zero or negative for inputs.
// Lists of indices are int32 or int64, as the type beside them says.
//
// Threads: any function may be called on any thread; riffle_kv_cache has the rules of
// riffle::KvCache.
#ifndef RIFFLE_C_RIFFLE_H_
#define RIFFLE_C_RIFFLE_H_

#include "riffle/c/cache.h"
#include "riffle/c/common.h"
#include "riffle/c/paged_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- Top-k

typedef struct riffle_topk_stats {
  double kth_value;
  int64_t ties_at_kth;
  int64_t elements_examined;
  int32_t depth;
  int32_t reserved;
} riffle_topk_stats;

enum { RIFFLE_AUTO = 0, RIFFLE_BUCKET_MAXIMA = 1, RIFFLE_LANE_SORT = 2 };

typedef struct riffle_topk_options {
  size_t size;
  riffle_thread_pool* pool;
  const void* ids;  // [rows, cols] of the output's index type: returned instead of columns
  int64_t ids_row_stride;
  int32_t algorithm;             // RIFFLE_AUTO, ...
  int32_t lanes;                 // lane sort; 0: 128
  int32_t unsorted;              // 1: the same set in an unspecified order
  int32_t smallest;              // 1: the k smallest, ascending
  int32_t index_order_if_short;  // for the calls on ranges (riffle_topk_per_row...) only
  int32_t reserved;
} riffle_topk_options;

typedef struct riffle_topk_out {
  size_t size;
  void* values;           // [rows, k] of x's dtype, or null
  int64_t values_stride;  // elements from a row to the next
  void* indices;          // [rows, k]
  int64_t indices_stride;
  riffle_topk_stats* stats;  // [rows], or null
  riffle_index_type index_type;
  int32_t reserved;
} riffle_topk_out;

// The k best of each row, best first.
RIFFLE_API riffle_status riffle_topk(const riffle_matrix* x, int64_t k, const riffle_topk_out* out,
                                     const riffle_topk_options* options);
// One k per row: k [x->rows].
RIFFLE_API riffle_status riffle_topk_each(const riffle_matrix* x, const int32_t* k,
                                          const riffle_topk_out* out,
                                          const riffle_topk_options* options);
// The k best of x[r, starts[r]:ends[r]) as indices relative to starts[r], then -1.
//   starts, ends  [x->rows];  indices  [x->rows, k]
RIFFLE_API riffle_status riffle_topk_per_row(const riffle_matrix* x, const int32_t* starts,
                                             const int32_t* ends, int64_t k, int32_t* indices,
                                             int64_t indices_stride,
                                             const riffle_topk_options* options);
// The form for decoding: seq_lens [x->rows / next_n].
RIFFLE_API riffle_status riffle_topk_per_row_decode(const riffle_matrix* x, const int32_t* seq_lens,
                                                    int32_t next_n, int64_t k, int32_t* indices,
                                                    int64_t indices_stride,
                                                    const riffle_topk_options* options);

// ---- The LM head

enum {
  RIFFLE_WEIGHT_F32 = 0,
  RIFFLE_WEIGHT_F16 = 1,
  RIFFLE_WEIGHT_BF16 = 2,
  RIFFLE_WEIGHT_Q8_0 = 3
};

// [rows, cols]: a row for each output, a column for each input. Along one axis the stride is 1.
typedef struct riffle_weights {
  const void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;  // elements; for Q8_0 in blocks
  int64_t col_stride;
  int32_t format;  // RIFFLE_WEIGHT_...
  int32_t reserved;
} riffle_weights;

typedef struct riffle_linear_options {
  size_t size;
  riffle_thread_pool* pool;
  const void* bias;  // [weight->rows], or null
  riffle_dtype bias_dtype;
  int32_t round_x;  // 1: an f32 x is rounded to bf16 first
} riffle_linear_options;

typedef struct riffle_linear_topk_out {
  size_t size;
  float* values;  // [rows, k]
  int64_t values_stride;
  void* indices;  // [rows, k]
  int64_t indices_stride;
  riffle_index_type index_type;
  int32_t reserved;
} riffle_linear_topk_out;

// y [x->rows, weight->rows] = x Wt + bias
RIFFLE_API riffle_status riffle_linear(const riffle_matrix* x, const riffle_weights* weight,
                                       float* y, int64_t y_stride,
                                       const riffle_linear_options* options);
// The k best of each row of x Wt + bias, whose logits are never stored as a whole.
RIFFLE_API riffle_status riffle_linear_topk(const riffle_matrix* x, const riffle_weights* weight,
                                            int64_t k, const riffle_linear_topk_out* out,
                                            const riffle_linear_options* options);

// ---- Sampling

typedef struct riffle_floats {
  const float* data;
  int64_t count;
} riffle_floats;
typedef struct riffle_int32s {
  const int32_t* data;
  int64_t count;
} riffle_int32s;
typedef struct riffle_int64s {
  const int64_t* data;
  int64_t count;
} riffle_int64s;

typedef struct riffle_uint64s {
  const uint64_t* data;
  int64_t count;
} riffle_uint64s;

// Tokens of each row: row r has tokens[offsets[r], offsets[r + 1]). Without offsets no row has any.
typedef struct riffle_token_lists {
  riffle_int32s tokens;
  riffle_int64s offsets;  // [rows + 1]
} riffle_token_lists;

// A bit for each column: column c is bit c % 32 of word c / 32.
typedef struct riffle_bitmask {
  const int32_t* words;  // [rows, (n + 31) / 32]; null: every column is allowed
  int64_t row_stride;    // words
} riffle_bitmask;

// What to do with a row that has a NaN or nothing above -inf.
typedef enum riffle_invalid_row {
  RIFFLE_INVALID_FAILS = 0,  // RIFFLE_BAD_VALUE, and nothing is written
  RIFFLE_INVALID_TOKEN = 1,  // token -1, log-probability NaN
} riffle_invalid_row;

// A list has an element for each row, one for all rows, or none: the default. Options that change
// logits are applied in the order that riffle/sampling.h states.
typedef struct riffle_sample_options {
  size_t size;
  riffle_thread_pool* pool;
  riffle_floats temperature;  // default 1; 0: greedy
  riffle_int32s top_k;        // default 0: off
  riffle_floats top_p;        // default 1: off
  riffle_floats min_p;        // default 0: off
  riffle_int64s stream;       // default: the row's number
  riffle_int64s position;     // default 0
  uint64_t seed;
  // The members from here on: since the second version of this struct.
  riffle_uint64s seeds;  // default: `seed`, which a list replaces
  riffle_bitmask allowed;
  riffle_token_lists bias_tokens;
  riffle_floats bias;                // of bias_tokens.tokens
  riffle_floats repetition_penalty;  // default 1: off
  riffle_floats frequency_penalty;   // default 0: off
  riffle_floats presence_penalty;    // default 0: off
  riffle_token_lists prompt_tokens;
  riffle_token_lists output_tokens;
  int64_t on_invalid;  // riffle_invalid_row
} riffle_sample_options;

// Draws tokens [logits->rows]. logprobs [logits->rows], or null.
RIFFLE_API riffle_status riffle_sample(const riffle_matrix* logits, int32_t* tokens,
                                       float* logprobs, const riffle_sample_options* options);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // RIFFLE_C_RIFFLE_H_
