// The C API from C11: known answers, the ABI, and arguments of every wrong kind, after each of
// which nothing has been written.
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"

// What programs were compiled with. A line may be added here, none changed.
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_matrix) == 40, "riffle_matrix");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_topk_stats) == 32, "riffle_topk_stats");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_topk_options) >= 56, "riffle_topk_options");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_topk_out) >= 56, "riffle_topk_out");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_weights) == 48, "riffle_weights");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_linear_options) >= 32, "riffle_linear_options");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_linear_topk_out) >= 48, "linear_topk_out");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_sample_options) >= 120, "sample_options");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_heads) == 56, "riffle_heads");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_kv_scales) == 56, "riffle_kv_scales");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_paged_kv) >= 136, "riffle_paged_kv");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_paged_batch) >= 72, "riffle_paged_batch");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_mask) == 64, "riffle_mask");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_attention_options) >= 136, "attention_options");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_attention_out) >= 48, "riffle_attention_out");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_attention_part) == 72, "attention_part");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_kv_cache_options) >= 88, "kv_cache_options");
_Static_assert(sizeof(void*) != 8 || sizeof(riffle_kv_cache_info) >= 104, "riffle_kv_cache_info");
_Static_assert(offsetof(riffle_topk_options, size) == 0, "size comes first");
_Static_assert(offsetof(riffle_paged_kv, size) == 0, "size comes first");

static void TestVersion(void) {
  EXPECT(riffle_c_api_version() == RIFFLE_C_API_VERSION);
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", RIFFLE_VERSION_MAJOR, RIFFLE_VERSION_MINOR,
           RIFFLE_VERSION_PATCH);
  EXPECT(strcmp(riffle_version(), version) == 0);
  EXPECT(strcmp(riffle_status_name(RIFFLE_BAD_K), "RIFFLE_BAD_K") == 0);
  EXPECT(strcmp(riffle_status_name(-3), "an unknown status") == 0);
}

static void TestTargetsAndThreads(void) {
  char best[64];
  snprintf(best, sizeof best, "%s", riffle_target());
  EXPECT(best[0] != '\0');
  EXPECT_FAILS(riffle_set_target("ABACUS"), RIFFLE_BAD_OPTION, "ABACUS");
  EXPECT(strcmp(riffle_target(), best) == 0);
  EXPECT_OK(riffle_set_target(best));
  EXPECT_OK(riffle_set_target(NULL));
  EXPECT_FAILS(riffle_set_num_threads(0), RIFFLE_BAD_OPTION, "threads = 0");
  EXPECT_FAILS(riffle_set_num_threads(-1), RIFFLE_BAD_OPTION, "threads = -1");
  EXPECT_OK(riffle_set_num_threads(2));
  EXPECT(riffle_num_threads() == 2);
  riffle_thread_pool* pool = NULL;
  EXPECT_FAILS(riffle_thread_pool_create(1 << 20, &pool), RIFFLE_BAD_OPTION, "threads = 1048576");
  EXPECT(pool == NULL);
  EXPECT_FAILS(riffle_thread_pool_create(1, NULL), RIFFLE_BAD_SHAPE, "pool is null");
  EXPECT_OK(riffle_thread_pool_create(2, &pool));
  EXPECT_OK(riffle_release_scratch(pool));
  riffle_thread_pool_destroy(pool);
  riffle_thread_pool_destroy(NULL);
  EXPECT_OK(riffle_set_parallel_region(NULL));
}

static const float kLogits[10] = {0.5f, 3,  -1, 3,  2,  // a tie
                                  NAN,  -2, -3, -1, -5};

static void TestTopK(void) {
  const riffle_matrix x = {kLogits, 2, 5, 5, RIFFLE_F32, 0};
  float values[6];
  int32_t indices[6];
  riffle_topk_out out = {sizeof out, values, 3, indices, 3, NULL, RIFFLE_INDEX_I32, 0};
  EXPECT_OK(riffle_topk(&x, 3, &out, NULL));
  const int32_t expected[6] = {1, 3, 4, 0, 3, 1};
  EXPECT(memcmp(indices, expected, sizeof expected) == 0);
  EXPECT(values[0] == 3 && values[2] == 2 && isnan(values[3]) && values[4] == -1);

  riffle_topk_options options = {.size = sizeof options};
  options.smallest = 1;
  EXPECT_OK(riffle_topk(&x, 1, &out, &options));
  EXPECT(indices[0] == 2 && indices[3] == 4);

  const int32_t starts[2] = {1, 4}, ends[2] = {4, 4};
  int32_t ranges[4];
  EXPECT_OK(riffle_topk_per_row(&x, starts, ends, 2, ranges, 2, NULL));
  EXPECT(ranges[0] == 0 && ranges[1] == 2 && ranges[2] == -1 && ranges[3] == -1);
}

// A caller whose header is newer: what the library does not know must be zero.
static void TestGrownStructs(void) {
  const riffle_matrix x = {kLogits, 1, 5, 5, RIFFLE_F32, 0};
  float values[1];
  int32_t indices[1];
  const riffle_topk_out out = {sizeof out, values, 1, indices, 1, NULL, RIFFLE_INDEX_I32, 0};
  struct {
    riffle_topk_options known;
    int64_t newer;
  } options;
  memset(&options, 0, sizeof options);
  options.known.size = sizeof options;
  EXPECT_OK(riffle_topk(&x, 1, &out, &options.known));
  options.newer = 1;
  EXPECT_FAILS(riffle_topk(&x, 1, &out, &options.known), RIFFLE_BAD_OPTION, "knows is not 0");
}

static void TestLinear(void) {
  const float x[4] = {1, 2, 3, 4};        // [2, 2]
  const float w[6] = {1, 0, 0, 1, 1, 1};  // [3, 2]
  const float bias[3] = {0, 0, 0.5f};
  const riffle_matrix matrix = {x, 2, 2, 2, RIFFLE_F32, 0};
  riffle_weights weight = {w, 3, 2, 2, 1, RIFFLE_WEIGHT_F32, 0};
  riffle_linear_options options = {.size = sizeof options};
  options.bias = bias;
  float y[6];
  EXPECT_OK(riffle_linear(&matrix, &weight, y, 3, &options));
  EXPECT(y[0] == 1 && y[1] == 2 && y[2] == 3.5f && y[3] == 3 && y[4] == 4 && y[5] == 7.5f);
  float values[2] = {9, 9};
  int32_t indices[2] = {9, 9};
  riffle_linear_topk_out out = {sizeof out, values, 1, indices, 1, RIFFLE_INDEX_I32, 0};
  EXPECT_FAILS(riffle_linear_topk(&matrix, &weight, 4, &out, NULL), RIFFLE_BAD_K, "k = 4");
  weight.format = 4;
  EXPECT_FAILS(riffle_linear_topk(&matrix, &weight, 1, &out, NULL), RIFFLE_BAD_DTYPE, "format = 4");
  weight.format = RIFFLE_WEIGHT_Q8_0;
  EXPECT_FAILS(riffle_linear_topk(&matrix, &weight, 1, &out, NULL), RIFFLE_BAD_SHAPE, "Q8_0");
  weight.format = RIFFLE_WEIGHT_F32;
  weight.rows = INT64_MAX;
  EXPECT_FAILS(riffle_linear_topk(&matrix, &weight, 1, &out, NULL), RIFFLE_BAD_SHAPE, "weight");
  weight.rows = 3;
  weight.data = NULL;
  EXPECT_FAILS(riffle_linear_topk(&matrix, &weight, 1, &out, NULL), RIFFLE_BAD_SHAPE, "weight");
  EXPECT_FAILS(riffle_linear_topk(&matrix, NULL, 1, &out, NULL), RIFFLE_BAD_SHAPE,
               "weight is null");
  weight.data = w;
  options.bias_dtype = RIFFLE_I8;
  EXPECT_FAILS(riffle_linear(&matrix, &weight, y, 3, &options), RIFFLE_BAD_DTYPE, "bias");
  EXPECT_FAILS(riffle_linear(&matrix, &weight, NULL, 3, NULL), RIFFLE_BAD_SHAPE, "y is null");
  EXPECT(values[0] == 9 && indices[0] == 9);
  EXPECT_OK(riffle_linear_topk(&matrix, &weight, 1, &out, NULL));
  EXPECT(values[0] == 3 && indices[0] == 2 && values[1] == 7 && indices[1] == 2);
}

static void TestSample(void) {
  const float logits[6] = {0, 5, 1, 2, -1, 3};
  riffle_matrix x = {logits, 2, 3, 3, RIFFLE_F32, 0};
  const float zero = 0;
  riffle_sample_options options = {.size = sizeof options};
  options.temperature.data = &zero;
  options.temperature.count = 1;
  int32_t tokens[2] = {9, 9};
  EXPECT_OK(riffle_sample(&x, tokens, NULL, &options));
  EXPECT(tokens[0] == 1 && tokens[1] == 2);
  tokens[0] = tokens[1] = 9;
  const float nan = NAN;
  options.temperature.data = &nan;
  EXPECT_FAILS(riffle_sample(&x, tokens, NULL, &options), RIFFLE_BAD_OPTION, "temperature[0]");
  options.temperature.data = NULL;
  EXPECT_FAILS(riffle_sample(&x, tokens, NULL, &options), RIFFLE_BAD_SHAPE, "temperature is null");
  options.temperature.count = -1;
  EXPECT_FAILS(riffle_sample(&x, tokens, NULL, &options), RIFFLE_BAD_SHAPE, "temperature has -1");
  options.temperature.count = 0;
  EXPECT_FAILS(riffle_sample(&x, NULL, NULL, &options), RIFFLE_BAD_SHAPE, "tokens is null");
  EXPECT_FAILS(riffle_sample(NULL, tokens, NULL, &options), RIFFLE_BAD_SHAPE, "logits is null");
  x.rows = (int64_t)1 << 62;
  EXPECT_FAILS(riffle_sample(&x, tokens, NULL, &options), RIFFLE_BAD_SHAPE, "tokens has");
  const float bad[3] = {0, NAN, 0};
  const riffle_matrix y = {bad, 1, 3, 3, RIFFLE_F32, 0};
  EXPECT_FAILS(riffle_sample(&y, tokens, NULL, NULL), RIFFLE_BAD_VALUE, "NaN");
  EXPECT(tokens[0] == 9 && tokens[1] == 9);
  riffle_sample_options kind = {.size = sizeof kind, .on_invalid = RIFFLE_INVALID_TOKEN};
  EXPECT_OK(riffle_sample(&y, tokens, NULL, &kind));
  EXPECT(tokens[0] == -1 && tokens[1] == 9);
  kind.on_invalid = 2;
  EXPECT_FAILS(riffle_sample(&y, tokens, NULL, &kind), RIFFLE_BAD_OPTION, "on_invalid = 2");
}

// What the second version of the options has; a caller of the first has none of it.
static void TestAdjustedSample(void) {
  const float logits[6] = {0, 5, 1, 2, -1, 3};
  const riffle_matrix x = {logits, 2, 3, 3, RIFFLE_F32, 0};
  const float zero = 0, penalty = 10, bias = 9;
  const int32_t words[2] = {5, 7}, output[1] = {2}, biased[1] = {1};
  const int64_t offsets[3] = {0, 0, 1}, none[3] = {0, 0, 0}, second[3] = {0, 0, 1};
  riffle_sample_options options = {.size = sizeof options,
                                   .temperature = {&zero, 1},
                                   .allowed = {words, 1},
                                   .presence_penalty = {&penalty, 1},
                                   .output_tokens = {{output, 1}, {offsets, 3}}};
  int32_t tokens[2] = {9, 9};
  EXPECT_OK(riffle_sample(&x, tokens, NULL, &options));
  EXPECT(tokens[0] == 2 && tokens[1] == 0);
  options.bias_tokens = (riffle_token_lists){{biased, 1}, {second, 3}};
  options.bias = (riffle_floats){&bias, 1};
  EXPECT_OK(riffle_sample(&x, tokens, NULL, &options));
  EXPECT(tokens[0] == 2 && tokens[1] == 1);
  options.output_tokens.offsets.data = none;
  EXPECT_FAILS(riffle_sample(&x, tokens, NULL, &options), RIFFLE_BAD_SHAPE, "output_tokens");
  options.size = offsetof(riffle_sample_options, seeds);
  EXPECT_OK(riffle_sample(&x, tokens, NULL, &options));
  EXPECT(tokens[0] == 1 && tokens[1] == 2);
}

// Values are the token's number, so a result says which tokens a query saw.
static riffle_kv_cache* FilledCache(int64_t* seq) {
  riffle_kv_cache_options options = {.size = sizeof options};
  options.layers = 2;
  options.kv_heads = kKvHeads;
  options.head_dim = kDim;
  options.pages = 8;
  options.page_size = 4;
  riffle_kv_cache* cache = NULL;
  EXPECT_OK(riffle_kv_cache_create(&options, &cache));
  static float keys[kTokens * kKvHeads * kDim], values[kTokens * kKvHeads * kDim];
  for (int i = 0; i < kTokens * kKvHeads * kDim; ++i) {
    keys[i] = 0;
    values[i] = (float)(i / (kKvHeads * kDim));
  }
  const riffle_heads k = Heads(keys, kTokens, kKvHeads), v = Heads(values, kTokens, kKvHeads);
  EXPECT_OK(riffle_kv_cache_add(cache, seq));
  EXPECT_OK(riffle_kv_cache_extend(cache, *seq, kTokens));
  EXPECT_OK(riffle_kv_cache_write(cache, 1, *seq, 0, &k, &v, NULL));
  return cache;
}

static void TestKvCacheAndAttention(void) {
  int64_t seq = 0, forked = 0, length = 0, max_pages = 0;
  riffle_kv_cache* cache = FilledCache(&seq);
  EXPECT_OK(riffle_kv_cache_fork(cache, seq, &forked));
  EXPECT_OK(riffle_kv_cache_truncate(cache, forked, 3));
  EXPECT_OK(riffle_kv_cache_length(cache, forked, &length));
  EXPECT(length == 3);
  const int64_t seqs[2] = {seq, forked};
  int32_t kv_lens[2], table[2 * 5];
  EXPECT_OK(riffle_kv_cache_max_pages(cache, seqs, 2, &max_pages));
  EXPECT(max_pages == 3);
  EXPECT_FAILS(riffle_kv_cache_batch(cache, seqs, 2, kv_lens, table, 2), RIFFLE_BAD_SHAPE,
               "max_pages = 2");
  EXPECT_FAILS(riffle_kv_cache_batch(cache, seqs, 2, kv_lens, table, INT64_MAX), RIFFLE_BAD_SHAPE,
               "page_table has");
  EXPECT_FAILS(riffle_kv_cache_batch(cache, NULL, 2, kv_lens, table, 5), RIFFLE_BAD_SHAPE, "seqs");
  EXPECT_FAILS(riffle_kv_cache_batch(cache, seqs, 2, NULL, table, 5), RIFFLE_BAD_SHAPE, "kv_lens");
  EXPECT_FAILS(riffle_kv_cache_batch(cache, seqs, 2, kv_lens, NULL, 5), RIFFLE_BAD_SHAPE,
               "page_table");
  EXPECT_OK(riffle_kv_cache_batch(cache, seqs, 2, kv_lens, table, 5));
  EXPECT(kv_lens[0] == kTokens && kv_lens[1] == 3 && table[3] == -1 && table[5] == table[0] &&
         table[6] == -1);

  riffle_paged_kv keys = {.size = sizeof keys}, values = {.size = sizeof values};
  EXPECT_OK(riffle_kv_cache_keys(cache, 1, &keys));
  EXPECT_OK(riffle_kv_cache_values(cache, 1, &values));
  EXPECT_FAILS(riffle_kv_cache_keys(cache, 2, &keys), RIFFLE_BAD_RANGE, "layer");
  float queries[2 * kHeads * kDim], results[2 * kHeads * kDim], lse[2 * kHeads];
  for (int i = 0; i < 2 * kHeads * kDim; ++i) {
    queries[i] = 1;
  }
  const riffle_heads q = Heads(queries, 2, kHeads);
  riffle_paged_batch batch = {.size = sizeof batch};
  batch.sequences = 2;
  batch.kv_lens = kv_lens;
  batch.page_table = table;
  batch.max_pages = batch.page_table_stride = 5;
  riffle_attention_out out = {sizeof out, results, kHeads * kDim, kDim, lse, kHeads};
  EXPECT_OK(riffle_paged_attention(&q, &keys, &values, &batch, &out, NULL));
  EXPECT(fabsf(results[0] - 4) < 1e-5f && fabsf(results[kHeads * kDim] - 1) < 1e-5f);
  EXPECT(fabsf(lse[0] - logf(kTokens)) < 1e-5f && fabsf(lse[kHeads] - logf(3)) < 1e-5f);
  riffle_attention_options options = {.size = sizeof options};
  options.window = 2;
  EXPECT_OK(riffle_paged_attention(&q, &keys, &values, &batch, &out, &options));
  EXPECT(fabsf(results[0] - 7.5f) < 1e-5f);

  table[0] = 8;
  results[0] = -1;
  EXPECT_FAILS(riffle_paged_attention(&q, &keys, &values, &batch, &out, NULL), RIFFLE_BAD_PAGE,
               "page_table");
  EXPECT(results[0] == -1);
  EXPECT_OK(riffle_kv_cache_free(cache, seq));
  EXPECT_FAILS(riffle_kv_cache_free(cache, seq), RIFFLE_BAD_SEQUENCE, "");
  EXPECT_FAILS(riffle_kv_cache_extend(cache, forked, 1 << 20), RIFFLE_OUT_OF_PAGES, "");
  EXPECT_FAILS(riffle_kv_cache_extend(cache, forked, -1), RIFFLE_BAD_RANGE, "tokens");
  riffle_kv_cache_info info = {.size = sizeof info};
  EXPECT_OK(riffle_kv_cache_get_info(cache, &info));
  EXPECT(info.sequences == 1 && info.pages_used == 1 && info.pages_free == 7);
  riffle_kv_cache_destroy(cache);
  riffle_kv_cache_destroy(NULL);
}

static void TestBlocksAndSwap(void) {
  int64_t seq = 0, found = 0, tokens = 0, bytes = 0, length = 0;
  riffle_kv_cache* cache = FilledCache(&seq);
  const riffle_block_key keys[3] = {{{1, 2}}, {{3, 4}}, {{5, 6}}};
  EXPECT_FAILS(riffle_kv_cache_set_block_keys(cache, seq, keys, 3), RIFFLE_BAD_RANGE, "");
  EXPECT_FAILS(riffle_kv_cache_set_block_keys(cache, seq, NULL, 2), RIFFLE_BAD_SHAPE, "keys");
  EXPECT_FAILS(riffle_kv_cache_set_block_keys(cache, seq, keys, -2), RIFFLE_BAD_SHAPE,
               "keys has -2");
  EXPECT_OK(riffle_kv_cache_set_block_keys(cache, seq, keys, 2));
  EXPECT_OK(riffle_kv_cache_lookup(cache, keys, 3, &tokens));
  EXPECT(tokens == 8);
  EXPECT_OK(riffle_kv_cache_add_from_blocks(cache, keys, 3, &found));
  EXPECT_OK(riffle_kv_cache_length(cache, found, &length));
  EXPECT(length == 8);
  EXPECT_OK(riffle_kv_cache_swap_bytes(cache, seq, &bytes));
  void* memory = malloc((size_t)bytes);
  EXPECT_FAILS(riffle_kv_cache_swap_out(cache, seq, NULL, bytes, NULL), RIFFLE_BAD_SHAPE, "memory");
  EXPECT_FAILS(riffle_kv_cache_swap_out(cache, seq, memory, bytes - 1, NULL), RIFFLE_BAD_SHAPE, "");
  EXPECT_FAILS(riffle_kv_cache_swap_out(cache, seq, memory, -1, NULL), RIFFLE_BAD_SHAPE, "memory");
  EXPECT_OK(riffle_kv_cache_swap_out(cache, seq, memory, bytes, NULL));
  EXPECT_FAILS(riffle_kv_cache_extend(cache, seq, 1), RIFFLE_BAD_SEQUENCE, "");
  EXPECT_OK(riffle_kv_cache_swap_in(cache, seq, memory, bytes, NULL));
  EXPECT_OK(riffle_kv_cache_extend(cache, seq, 1));
  free(memory);
  riffle_kv_cache_destroy(cache);
}

int main(void) {
  EXPECT(strcmp(riffle_error_message(), "") == 0);
  TestVersion();
  TestTargetsAndThreads();
  TestTopK();
  TestGrownStructs();
  TestLinear();
  TestSample();
  TestAdjustedSample();
  TestKvCacheAndAttention();
  TestBlocksAndSwap();
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
