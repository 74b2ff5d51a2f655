// Paged attention, and writes to pages, for C.
#include "riffle/attention.h"

#include <memory>
#include <vector>

#include "c_api/convert.h"
#include "riffle/write_kv.h"

namespace riffle::c_api {
namespace {

PagedBatch ToBatch(const riffle_paged_batch* in) {
  const riffle_paged_batch batch = ReadSized("batch", in);
  CheckReserved("batch", batch.reserved);
  const int64_t sequences = CheckedCount("kv_lens", batch.sequences);
  PagedBatch result;
  if (batch.cu_q_lens != nullptr) {
    result.cu_q_lens =
        ToIndexSpan("cu_q_lens", batch.cu_q_lens, sequences + 1, batch.cu_q_lens_type);
  }
  result.kv_lens = ToIndexSpan("kv_lens", batch.kv_lens, sequences, batch.kv_lens_type);
  if (ToIndexType("page_table", batch.page_table_type) == IndexType::kInt32) {
    result.page_table = static_cast<const int32_t*>(batch.page_table);
  } else {
    result.page_table = static_cast<const int64_t*>(batch.page_table);
  }
  result.max_pages = batch.max_pages;
  result.page_table_stride = batch.page_table_stride;
  return result;
}

AttentionMask ToMask(const riffle_mask& mask) {
  CheckReserved("mask", mask.reserved);
  return {mask.data, ToDType("mask", mask.dtype), mask.tokens,      mask.heads,
          mask.keys, mask.token_stride,           mask.head_stride, mask.key_stride};
}

// `q` is the call's, already converted.
AttentionOptions ToOptions(const riffle_attention_options* in, const HeadsView& q) {
  const riffle_attention_options options = ReadOptions("options", in);
  AttentionOptions result;
  if (ToBool("has_scale", options.has_scale)) {
    result.scale = options.scale;
  }
  result.causal = !ToBool("not_causal", options.not_causal);
  if (options.window != 0) {
    result.window = options.window;
  }
  if (ToBool("has_window_right", options.has_window_right)) {
    result.window_right = options.window_right;
  }
  if (options.soft_cap != 0) {
    result.soft_cap = options.soft_cap;
  }
  result.sinks = ToOptionalSpan("sinks", options.sinks, q.heads);
  result.alibi_slopes = ToOptionalSpan("alibi_slopes", options.alibi_slopes, q.heads);
  result.mask = ToMask(options.mask);
  result.bf16_products = ToBool("bf16_products", options.bf16_products);
  result.pool = ToPool(options.pool);
  return result;
}

AttentionOut ToOut(const riffle_attention_out* in) {
  const riffle_attention_out out = ReadSized("out", in);
  return {out.data, out.token_stride, out.head_stride, out.lse, out.lse_token_stride};
}

PagedKvOut ToPagedKvOut(const char* name, const riffle_paged_kv* in, void* computed_scales) {
  const PagedKv kv = ToPagedKv(name, in);
  return {const_cast<void*>(kv.data),
          kv.dtype,
          kv.num_pages,
          kv.page_size,
          kv.kv_heads,
          kv.head_dim,
          kv.page_stride,
          kv.token_stride,
          kv.head_stride,
          kv.scales,
          kv.format,
          computed_scales};
}

}  // namespace
}  // namespace riffle::c_api

using namespace riffle::c_api;  // NOLINT(google-build-using-namespace): this file belongs to it

riffle_status riffle_paged_attention(const riffle_heads* q, const riffle_paged_kv* keys,
                                     const riffle_paged_kv* values, const riffle_paged_batch* batch,
                                     const riffle_attention_out* out,
                                     const riffle_attention_options* options) {
  return Guarded([&] {
    const riffle::HeadsView queries = ToHeads("q", q);
    riffle::PagedAttention(queries, ToPagedKv("keys", keys), ToPagedKv("values", values),
                           ToBatch(batch), ToOut(out), ToOptions(options, queries));
  });
}

riffle_status riffle_attention_plan_create(const riffle_heads* q, const riffle_paged_kv* keys,
                                           const riffle_paged_batch* batch,
                                           const riffle_attention_options* options,
                                           riffle_attention_plan** plan) {
  return Guarded([&] {
    NotNull("plan", plan);
    const riffle::HeadsView queries = ToHeads("q", q);
    auto made = std::make_unique<riffle_attention_plan>();
    made->plan.Make(queries, ToPagedKv("keys", keys), ToBatch(batch), ToOptions(options, queries));
    *plan = made.release();
  });
}

riffle_status riffle_attention_plan_make(riffle_attention_plan* plan, const riffle_heads* q,
                                         const riffle_paged_kv* keys,
                                         const riffle_paged_batch* batch,
                                         const riffle_attention_options* options) {
  return Guarded([&] {
    NotNull("plan", plan);
    const riffle::HeadsView queries = ToHeads("q", q);
    plan->plan.Make(queries, ToPagedKv("keys", keys), ToBatch(batch), ToOptions(options, queries));
  });
}

void riffle_attention_plan_destroy(riffle_attention_plan* plan) { delete plan; }

riffle_status riffle_planned_attention(const riffle_heads* q, const riffle_paged_kv* keys,
                                       const riffle_paged_kv* values,
                                       const riffle_attention_plan* plan,
                                       const riffle_attention_out* out,
                                       const riffle_attention_options* options) {
  return Guarded([&] {
    const riffle::HeadsView queries = ToHeads("q", q);
    riffle::PagedAttention(queries, ToPagedKv("keys", keys), ToPagedKv("values", values),
                           NotNull("plan", plan).plan, ToOut(out), ToOptions(options, queries));
  });
}

riffle_status riffle_merge_states(const riffle_attention_part* parts, int64_t num_parts,
                                  const riffle_attention_out* out, riffle_thread_pool* pool) {
  return Guarded([&] {
    std::vector<riffle::AttentionPart> converted;
    for (const riffle_attention_part& part : ToSpan("parts", parts, num_parts)) {
      converted.push_back({ToHeads("parts", &part.out), part.lse, part.lse_token_stride});
    }
    riffle::MergeStates(converted, ToOut(out), {ToPool(pool)});
  });
}

riffle_status riffle_write_kv(const riffle_heads* keys, const riffle_heads* values,
                              const void* slots, riffle_index_type slot_type,
                              const riffle_paged_kv* key_pages, const riffle_paged_kv* value_pages,
                              const riffle_write_kv_options* options) {
  return Guarded([&] {
    const riffle::HeadsView key_heads = ToHeads("keys", keys);
    const riffle_write_kv_options in = ReadOptions("options", options);
    riffle::WriteKv(key_heads, ToHeads("values", values),
                    ToIndexSpan("slots", slots, key_heads.tokens, slot_type),
                    ToPagedKvOut("key_pages", key_pages, in.key_computed_scales),
                    ToPagedKvOut("value_pages", value_pages, in.value_computed_scales),
                    {ToPool(in.pool)});
  });
}
