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

#include <stddef.h>
#include <stdint.h>

#include "riffle/export.h"
#include "riffle/version.h"

// Raised when functions, constants or members are added.
#define RIFFLE_C_API_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

// ---- Failures and versions

typedef int32_t riffle_status;
enum {
  RIFFLE_OK = 0,
  RIFFLE_BAD_SHAPE = 1,      // a dimension, stride or pointer that describes no array, or null
  RIFFLE_BAD_K = 2,          // k outside its limits
  RIFFLE_BAD_RANGE = 3,      // start, end, length or position outside of what there is
  RIFFLE_BAD_OPTION = 4,     // an option outside its limits; a wrong `size`
  RIFFLE_BAD_DTYPE = 5,      // an element type or format that the call does not support
  RIFFLE_BAD_PAGE = 6,       // a page number outside the pool
  RIFFLE_BAD_SEQUENCE = 7,   // an id that is not a sequence of the cache
  RIFFLE_BAD_VALUE = 8,      // input with no answer, such as a NaN among logits to sample from
  RIFFLE_OVERLAP = 9,        // an output that overlaps itself or an input
  RIFFLE_OUT_OF_PAGES = 10,  // the cache's pool is full
  RIFFLE_OUT_OF_MEMORY = 11,
  RIFFLE_INTERNAL = 12,  // a fault of the library
};

// The text of the last failure on the calling thread; "" before the first. Valid until the next
// failure on this thread.
RIFFLE_API const char* riffle_error_message(void);
// "RIFFLE_BAD_K"; "an unknown status" for a number that is none.
RIFFLE_API const char* riffle_status_name(riffle_status status);
RIFFLE_API const char* riffle_version(void);    // "0.1.0"
RIFFLE_API int32_t riffle_c_api_version(void);  // RIFFLE_C_API_VERSION of the library

// ---- Types of elements

typedef int32_t riffle_dtype;
enum {
  RIFFLE_F32 = 0,
  RIFFLE_F16 = 1,
  RIFFLE_BF16 = 2,
  RIFFLE_F64 = 3,
  RIFFLE_I8 = 4,
  RIFFLE_U8 = 5,
  RIFFLE_I16 = 6,
  RIFFLE_U16 = 7,
  RIFFLE_I32 = 8,
  RIFFLE_U32 = 9,
  RIFFLE_I64 = 10,
  RIFFLE_U64 = 11,
  RIFFLE_E4M3 = 12,
  RIFFLE_E5M2 = 13,
  RIFFLE_E8M0 = 14,
};

typedef int32_t riffle_index_type;
enum { RIFFLE_INDEX_I32 = 0, RIFFLE_INDEX_I64 = 1 };

// ---- SIMD targets and threads

// The target that kernels run on at present; valid until the next call on this thread. Null on
// failure.
RIFFLE_API const char* riffle_target(void);
// Sets the target of all later calls in the process; "" or null: the best one.
RIFFLE_API riffle_status riffle_set_target(const char* name);

// Threads of the default pool; 0 on failure.
RIFFLE_API int32_t riffle_num_threads(void);
RIFFLE_API riffle_status riffle_set_num_threads(int32_t threads);

// Runs the default pool on another library's threads (riffle::SetParallelRegion); null: on its own.
typedef void (*riffle_parallel_region)(void (*body)(void*), void* data, unsigned threads,
                                       unsigned flags);
RIFFLE_API riffle_status riffle_set_parallel_region(riffle_parallel_region region);

// A pool of threads of the caller's own. `threads` includes the caller; 0: the CPUs that this
// process may use. A null pool in a call means the default pool, and destroying null does nothing.
typedef struct riffle_thread_pool riffle_thread_pool;
RIFFLE_API riffle_status riffle_thread_pool_create(int32_t threads, riffle_thread_pool** pool);
RIFFLE_API void riffle_thread_pool_destroy(riffle_thread_pool* pool);

// Frees what the pool and the calling thread keep from call to call.
RIFFLE_API riffle_status riffle_release_scratch(riffle_thread_pool* pool);

// ---- Top-k

// A read-only matrix [rows, cols] whose columns are contiguous.
typedef struct riffle_matrix {
  const void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  riffle_dtype dtype;
  int32_t reserved;
} riffle_matrix;

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
  int32_t unsorted;              // 1: the same set in another order
  int32_t smallest;              // 1: the k smallest, ascending
  int32_t index_order_if_short;  // ranges only
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

// What becomes of a row that has a NaN or nothing above -inf.
typedef enum riffle_invalid_row {
  RIFFLE_INVALID_FAILS = 0,  // RIFFLE_BAD_VALUE, and nothing is written
  RIFFLE_INVALID_TOKEN = 1,  // token -1, log-probability NaN
} riffle_invalid_row;

// A list has an element for each row, one for all rows, or none: the default. What changes logits
// is applied in the order that riffle/sampling.h states.
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
  // Since the second version of this struct.
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

// ---- Attention

// [tokens, heads, head_dim], head_dim contiguous.
typedef struct riffle_heads {
  const void* data;
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t token_stride;
  int64_t head_stride;
  riffle_dtype dtype;
  int32_t reserved;
} riffle_heads;

typedef int32_t riffle_kv_format;
enum {
  RIFFLE_KV_PLAIN = 0,
  RIFFLE_KV_Q8_0 = 1,
  RIFFLE_KV_Q4_0 = 2,
  RIFFLE_KV_Q4_1 = 3,
  RIFFLE_KV_Q5_0 = 4,
  RIFFLE_KV_Q5_1 = 5,
  RIFFLE_KV_IQ4_NL = 6,
};

// Scales of elements (riffle::KvScales). All zero: none.
typedef struct riffle_kv_scales {
  const void* data;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
  int64_t group_stride;
  int64_t group;  // elements of a row that share a scale; 0: the whole row
  riffle_dtype dtype;
  float divisor;  // 0: 1
} riffle_kv_scales;

// The keys, or the values, of every page of a pool: element (page, token, head, i) is at page *
// page_stride + token * token_stride + head * head_stride + i. For a block format, dtype is
// RIFFLE_U8 and strides are in bytes.
typedef struct riffle_paged_kv {
  size_t size;
  void* data;  // only riffle_write_kv writes to it
  int64_t num_pages;
  int64_t page_size;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t page_stride;
  int64_t token_stride;
  int64_t head_stride;
  riffle_kv_scales scales;
  riffle_dtype dtype;
  riffle_kv_format format;
} riffle_paged_kv;

typedef struct riffle_paged_batch {
  size_t size;
  int64_t sequences;
  const void* cu_q_lens;   // [sequences + 1], or null: one query a sequence
  const void* kv_lens;     // [sequences]
  const void* page_table;  // [sequences, max_pages]
  int64_t max_pages;
  int64_t page_table_stride;
  riffle_index_type cu_q_lens_type;
  riffle_index_type kv_lens_type;
  riffle_index_type page_table_type;
  int32_t reserved;
} riffle_paged_batch;

// f32, f16, bf16: added to logits; u8: 0 hides a key. Without data: no mask.
typedef struct riffle_mask {
  const void* data;
  int64_t tokens;  // those of q, or 1
  int64_t heads;   // those of q, or 1
  int64_t keys;    // at least the largest kv_len
  int64_t token_stride;
  int64_t head_stride;
  int64_t key_stride;
  riffle_dtype dtype;
  int32_t reserved;
} riffle_mask;

typedef struct riffle_attention_options {
  size_t size;
  riffle_thread_pool* pool;
  const float* sinks;         // [heads of q], or null
  const float* alibi_slopes;  // [heads of q], or null
  riffle_mask mask;
  int64_t window;        // w >= 1: a query at position p sees no key before p-w+1; 0: no window
  int64_t window_right;  // r >= 0, if has_window_right: no key after p+r
  float scale;           // if has_scale; else 1 / sqrt(head_dim)
  float soft_cap;        // c > 0; 0: none
  int32_t has_scale;
  int32_t has_window_right;
  int32_t not_causal;     // 1: a query sees all keys, also later ones
  int32_t bf16_products;  // 1: q may be rounded to bf16 where keys and values are exact in it
} riffle_attention_options;

typedef struct riffle_attention_out {
  size_t size;
  void* data;  // [tokens, heads, head_dim of values] of q's dtype
  int64_t token_stride;
  int64_t head_stride;
  float* lse;  // [tokens, heads], or null
  int64_t lse_token_stride;
} riffle_attention_out;

RIFFLE_API riffle_status riffle_paged_attention(const riffle_heads* q, const riffle_paged_kv* keys,
                                                const riffle_paged_kv* values,
                                                const riffle_paged_batch* batch,
                                                const riffle_attention_out* out,
                                                const riffle_attention_options* options);

// What calls on one batch share (riffle::AttentionPlan): made once, used by every layer.
typedef struct riffle_attention_plan riffle_attention_plan;
RIFFLE_API riffle_status riffle_attention_plan_create(const riffle_heads* q,
                                                      const riffle_paged_kv* keys,
                                                      const riffle_paged_batch* batch,
                                                      const riffle_attention_options* options,
                                                      riffle_attention_plan** plan);
// Plans another batch, reusing the plan's memory. After a failure the plan has no batch.
RIFFLE_API riffle_status riffle_attention_plan_make(riffle_attention_plan* plan,
                                                    const riffle_heads* q,
                                                    const riffle_paged_kv* keys,
                                                    const riffle_paged_batch* batch,
                                                    const riffle_attention_options* options);
RIFFLE_API void riffle_attention_plan_destroy(riffle_attention_plan* plan);
RIFFLE_API riffle_status riffle_planned_attention(const riffle_heads* q,
                                                  const riffle_paged_kv* keys,
                                                  const riffle_paged_kv* values,
                                                  const riffle_attention_plan* plan,
                                                  const riffle_attention_out* out,
                                                  const riffle_attention_options* options);

typedef struct riffle_attention_part {
  riffle_heads out;
  const float* lse;
  int64_t lse_token_stride;
} riffle_attention_part;
// Merges results over disjoint parts of the keys into one.
RIFFLE_API riffle_status riffle_merge_states(const riffle_attention_part* parts, int64_t num_parts,
                                             const riffle_attention_out* out,
                                             riffle_thread_pool* pool);

typedef struct riffle_write_kv_options {
  size_t size;
  riffle_thread_pool* pool;
  // Null: elements are divided by the scales of key_pages. Otherwise scales are computed and stored
  // here, in the dtype and strides of key_pages->scales.
  void* key_computed_scales;
  void* value_computed_scales;
} riffle_write_kv_options;

// Writes token t to slots[t] = page * page_size + offset of both pools; -1: the token is skipped.
//   slots  [keys->tokens] of slot_type
RIFFLE_API riffle_status riffle_write_kv(const riffle_heads* keys, const riffle_heads* values,
                                         const void* slots, riffle_index_type slot_type,
                                         const riffle_paged_kv* key_pages,
                                         const riffle_paged_kv* value_pages,
                                         const riffle_write_kv_options* options);

#ifdef __cplusplus
}  // extern "C"
#endif

#include "riffle/c/cache.h"

#endif  // RIFFLE_C_RIFFLE_H_
