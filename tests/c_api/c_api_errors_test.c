// The C API with arguments of every wrong kind: null, sizes that are negative or overflow, numbers
// of no enumeration, NaN. Each call fails with its status and names the argument; nothing has been
// written.
#include <math.h>

#include "expect.h"

static const float kLogits[10] = {0.5f, 3, -1, 3, 2, NAN, -2, -3, -1, -5};

// A right call of riffle_topk and the like, which each test below spoils.
typedef struct TopKCall {
  riffle_matrix x;
  float values[10];
  int32_t indices[10];
  riffle_topk_out out;
  riffle_topk_options options;
} TopKCall;

static void MakeTopKCall(TopKCall* call) {
  *call =
      (TopKCall){.x = {kLogits, 2, 5, 5, RIFFLE_F32, 0}, .options = {.size = sizeof call->options}};
  for (int i = 0; i < 10; ++i) {
    call->values[i] = 7;
    call->indices[i] = 7;
  }
  call->out = (riffle_topk_out){
      sizeof call->out, call->values, 5, call->indices, 5, NULL, RIFFLE_INDEX_I32, 0};
}

static void ExpectNothingWritten(const TopKCall* call) {
  for (int i = 0; i < 10; ++i) {
    EXPECT(call->values[i] == 7 && call->indices[i] == 7);
  }
}

static void TestBadTopKInput(void) {
  TopKCall call;
  MakeTopKCall(&call);
  riffle_matrix* const x = &call.x;
  riffle_topk_out* const out = &call.out;
  int32_t* const indices = call.indices;
  EXPECT_FAILS(riffle_topk(NULL, 1, out, NULL), RIFFLE_BAD_SHAPE, "x is null");
  EXPECT_FAILS(riffle_topk(x, 0, out, NULL), RIFFLE_BAD_K, "k = 0");
  EXPECT_FAILS(riffle_topk(x, 6, out, NULL), RIFFLE_BAD_K, "k = 6");
  EXPECT_FAILS(riffle_topk(x, INT64_MIN, out, NULL), RIFFLE_BAD_K, "k = -");
  x->data = NULL;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_SHAPE, "null");
  x->data = kLogits;
  x->rows = -1;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_SHAPE, "-1 rows");
  x->rows = INT64_MAX;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_SHAPE, "does not fit an address");
  x->rows = (int64_t)1 << 61;  // times 8 bytes it is 0
  EXPECT_FAILS(riffle_topk_each(x, indices, out, NULL), RIFFLE_BAD_SHAPE, "k has 2305");
  EXPECT_FAILS(riffle_topk_per_row(x, indices, indices, 1, indices, 1, NULL), RIFFLE_BAD_SHAPE,
               "has 2305843009213693952 elements");
  riffle_topk_stats stats[2];
  out->stats = stats;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_SHAPE, "stats has");
  out->stats = NULL;
  x->rows = 2;
  x->row_stride = INT64_MIN;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_SHAPE, "does not fit an address");
  x->row_stride = 5;
  x->cols = INT64_MAX;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_SHAPE, "columns");
  x->cols = 5;
  const riffle_dtype dtypes[] = {-1, 15, 1000, INT32_MIN, INT32_MAX, RIFFLE_E4M3};
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; ++i) {
    x->dtype = dtypes[i];
    EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_DTYPE, "x");
  }
  x->dtype = RIFFLE_F32;
  x->reserved = 1;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_OPTION, "x.reserved = 1");
  ExpectNothingWritten(&call);
}

static void TestBadTopKRanges(void) {
  TopKCall call;
  MakeTopKCall(&call);
  const riffle_matrix* const x = &call.x;
  int32_t* const indices = call.indices;
  EXPECT_FAILS(riffle_topk_each(x, NULL, &call.out, NULL), RIFFLE_BAD_SHAPE, "k is null");
  EXPECT_FAILS(riffle_topk_per_row(x, NULL, indices, 1, indices, 1, NULL), RIFFLE_BAD_SHAPE,
               "starts is null");
  EXPECT_FAILS(riffle_topk_per_row_decode(x, NULL, 2, 1, indices, 1, NULL), RIFFLE_BAD_SHAPE,
               "seq_lens is null");
  EXPECT_FAILS(riffle_topk_per_row_decode(x, indices, 0, 1, indices, 1, NULL), RIFFLE_BAD_OPTION,
               "next_n = 0");
  ExpectNothingWritten(&call);
}

static void TestBadTopKOut(void) {
  TopKCall call;
  MakeTopKCall(&call);
  const riffle_matrix* const x = &call.x;
  riffle_topk_out* const out = &call.out;
  EXPECT_FAILS(riffle_topk(x, 1, NULL, NULL), RIFFLE_BAD_SHAPE, "out is null");
  out->size = 0;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_OPTION, "out.size = 0");
  out->size = SIZE_MAX;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_OPTION, "out.size = ");
  out->size = sizeof *out;
  out->index_type = 2;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_BAD_OPTION, "index_type = 2");
  out->index_type = RIFFLE_INDEX_I32;
  out->indices_stride = 0;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_OVERLAP, "indices");
  out->indices_stride = 5;
  out->values = call.indices;
  EXPECT_FAILS(riffle_topk(x, 1, out, NULL), RIFFLE_OVERLAP, "shares memory");
  ExpectNothingWritten(&call);
}

static void TestBadTopKOptions(void) {
  TopKCall call;
  MakeTopKCall(&call);
  riffle_topk_options* const options = &call.options;
  options->unsorted = 2;
  EXPECT_FAILS(riffle_topk(&call.x, 1, &call.out, options), RIFFLE_BAD_OPTION, "unsorted = 2");
  options->unsorted = 0;
  options->algorithm = 3;
  EXPECT_FAILS(riffle_topk(&call.x, 1, &call.out, options), RIFFLE_BAD_OPTION, "algorithm = 3");
  options->algorithm = RIFFLE_LANE_SORT;
  options->lanes = 3;
  EXPECT_FAILS(riffle_topk(&call.x, 1, &call.out, options), RIFFLE_BAD_OPTION, "lanes = 3");
  ExpectNothingWritten(&call);
}

static void TestBadHandlesAndPools(void) {
  int64_t seq = 0;
  riffle_paged_kv kv = {.size = sizeof kv};
  EXPECT_FAILS(riffle_kv_cache_add(NULL, &seq), RIFFLE_BAD_SHAPE, "cache is null");
  EXPECT_FAILS(riffle_kv_cache_fork(NULL, 1, &seq), RIFFLE_BAD_SHAPE, "cache is null");
  EXPECT_FAILS(riffle_kv_cache_keys(NULL, 0, &kv), RIFFLE_BAD_SHAPE, "cache is null");
  EXPECT_FAILS(riffle_kv_cache_length(NULL, 1, &seq), RIFFLE_BAD_SHAPE, "cache is null");
  riffle_kv_cache_options options = {.size = sizeof options};
  riffle_kv_cache* cache = NULL;
  EXPECT_FAILS(riffle_kv_cache_create(NULL, &cache), RIFFLE_BAD_SHAPE, "options is null");
  EXPECT_FAILS(riffle_kv_cache_create(&options, &cache), RIFFLE_BAD_SHAPE, "");
  options.layers = options.kv_heads = options.head_dim = options.page_size = INT64_MAX;
  options.pages = INT64_MAX;
  EXPECT_FAILS(riffle_kv_cache_create(&options, &cache), RIFFLE_BAD_SHAPE, "");
  options.layers = options.kv_heads = 1;
  options.head_dim = 512;
  options.page_size = 256;
  options.pages = INT32_MAX;
  options.layers = 1 << 20;
  const riffle_status status = riffle_kv_cache_create(&options, &cache);
  EXPECT(status == RIFFLE_OUT_OF_MEMORY || status == RIFFLE_BAD_SHAPE);
  options.separate_values = 3;
  EXPECT_FAILS(riffle_kv_cache_create(&options, &cache), RIFFLE_BAD_OPTION, "separate_values = 3");
  options.separate_values = 0;
  options.format = 7;
  EXPECT_FAILS(riffle_kv_cache_create(&options, &cache), RIFFLE_BAD_DTYPE, "format = 7");
  EXPECT(cache == NULL);
}

// The arguments of a right call over one page.
static float attention_memory[4 * kKvHeads * kDim], attention_results[kHeads * kDim];
static const int32_t one_kv_len = 4, one_page = 0;

static riffle_paged_kv OnePage(void) {
  riffle_paged_kv kv = {.size = sizeof kv};
  kv.data = attention_memory;
  kv.num_pages = 1;
  kv.page_size = 4;
  kv.kv_heads = kKvHeads;
  kv.head_dim = kDim;
  kv.page_stride = 4 * kKvHeads * kDim;
  kv.token_stride = kKvHeads * kDim;
  kv.head_stride = kDim;
  return kv;
}

static riffle_paged_batch OneSequence(void) {
  riffle_paged_batch batch = {.size = sizeof batch};
  batch.sequences = 1;
  batch.kv_lens = &one_kv_len;
  batch.page_table = &one_page;
  batch.max_pages = batch.page_table_stride = 1;
  return batch;
}

static riffle_attention_out Results(void) {
  attention_results[0] = 7;
  const riffle_attention_out out = {sizeof out, attention_results, kHeads * kDim, kDim, NULL, 0};
  return out;
}

static void TestBadBatches(void) {
  const riffle_heads q = Heads(attention_memory, 1, kHeads);
  const riffle_paged_kv kv = OnePage();
  riffle_paged_batch batch = OneSequence();
  const riffle_attention_out out = Results();
  riffle_attention_plan* plan = NULL;
  EXPECT_FAILS(riffle_paged_attention(NULL, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_SHAPE,
               "q is");
  EXPECT_FAILS(riffle_paged_attention(&q, NULL, &kv, &batch, &out, NULL), RIFFLE_BAD_SHAPE, "keys");
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, NULL, &batch, &out, NULL), RIFFLE_BAD_SHAPE,
               "values");
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, NULL, &out, NULL), RIFFLE_BAD_SHAPE, "batch");
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, NULL, NULL), RIFFLE_BAD_SHAPE, "out");
  EXPECT_FAILS(riffle_planned_attention(&q, &kv, &kv, NULL, &out, NULL), RIFFLE_BAD_SHAPE, "plan");
  EXPECT_FAILS(riffle_attention_plan_make(NULL, &q, &kv, &batch, NULL), RIFFLE_BAD_SHAPE, "plan");
  batch.sequences = (int64_t)1 << 62;
  EXPECT_FAILS(riffle_attention_plan_create(&q, &kv, &batch, NULL, &plan), RIFFLE_BAD_SHAPE,
               "kv_lens has");
  batch.sequences = INT64_MAX;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_SHAPE,
               "kv_lens has");
  batch.sequences = 1;
  batch.kv_lens = NULL;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_SHAPE,
               "kv_lens");
  batch.kv_lens = &one_kv_len;
  batch.page_table = NULL;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_SHAPE,
               "page_table");
  batch.page_table = &one_page;
  batch.kv_lens_type = 9;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_OPTION,
               "kv_lens = 9");
  batch.kv_lens_type = RIFFLE_INDEX_I32;
  EXPECT(attention_results[0] == 7 && plan == NULL);
}

static void TestBadPages(void) {
  const riffle_heads q = Heads(attention_memory, 1, kHeads);
  riffle_paged_kv kv = OnePage();
  const riffle_paged_batch batch = OneSequence();
  const riffle_attention_out out = Results();
  kv.format = -1;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_DTYPE,
               "format");
  kv.format = RIFFLE_KV_PLAIN;
  kv.scales.dtype = 99;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_DTYPE, "99");
  kv.scales.dtype = RIFFLE_F32;
  kv.page_stride = INT64_MAX;
  kv.num_pages = INT32_MAX;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, NULL), RIFFLE_BAD_SHAPE, "keys");
  kv.page_stride = 4 * kKvHeads * kDim;
  kv.num_pages = 1;
  EXPECT(attention_results[0] == 7);
}

static void TestBadAttentionOptions(void) {
  riffle_heads q = Heads(attention_memory, 1, kHeads);
  const riffle_paged_kv kv = OnePage();
  const riffle_paged_batch batch = OneSequence();
  const riffle_attention_out out = Results();
  riffle_attention_options options = {.size = sizeof options};
  options.has_scale = 1;
  options.scale = NAN;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, &options), RIFFLE_BAD_OPTION,
               "scale");
  options.has_scale = 0;
  options.soft_cap = NAN;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, &options), RIFFLE_BAD_OPTION,
               "soft_cap");
  options.soft_cap = 0;
  options.window = -4;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, &options), RIFFLE_BAD_OPTION,
               "window = -4");
  options.window = 0;
  options.mask.data = attention_memory;
  options.mask.dtype = RIFFLE_I64;
  options.mask.tokens = options.mask.heads = 1;
  options.mask.keys = 4;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, &options), RIFFLE_BAD_DTYPE,
               "mask");
  q.heads = INT64_MAX;
  options.sinks = attention_memory;
  EXPECT_FAILS(riffle_paged_attention(&q, &kv, &kv, &batch, &out, &options), RIFFLE_BAD_SHAPE,
               "sinks");
  q.heads = kHeads;
  EXPECT(attention_results[0] == 7);
}

static void TestBadWritesAndMerges(void) {
  const int64_t slot = 4;
  const riffle_paged_kv kv = OnePage();
  const riffle_attention_out out = Results();
  const riffle_heads token = Heads(attention_results, 1, kKvHeads);
  static float value_memory[4 * kKvHeads * kDim];
  riffle_paged_kv value_pages = kv;
  value_pages.data = value_memory;
  EXPECT_FAILS(riffle_write_kv(&token, &token, &slot, RIFFLE_INDEX_I64, &kv, &value_pages, NULL),
               RIFFLE_BAD_PAGE, "slots[0] = 4");
  EXPECT_FAILS(riffle_write_kv(&token, &token, NULL, RIFFLE_INDEX_I64, &kv, &kv, NULL),
               RIFFLE_BAD_SHAPE, "slots is null");
  EXPECT_FAILS(riffle_write_kv(NULL, &token, &slot, RIFFLE_INDEX_I64, &kv, &kv, NULL),
               RIFFLE_BAD_SHAPE, "keys is null");
  EXPECT_FAILS(riffle_merge_states(NULL, 1, &out, NULL), RIFFLE_BAD_SHAPE, "parts is null");
  EXPECT_FAILS(riffle_merge_states(NULL, 0, &out, NULL), RIFFLE_BAD_SHAPE, "");
  EXPECT(attention_results[0] == 7);
}

int main(void) {
  TestBadTopKInput();
  TestBadTopKRanges();
  TestBadTopKOut();
  TestBadTopKOptions();
  TestBadHandlesAndPools();
  TestBadBatches();
  TestBadPages();
  TestBadAttentionOptions();
  TestBadWritesAndMerges();
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
