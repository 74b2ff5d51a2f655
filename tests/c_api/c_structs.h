// C++ views as the structs of the C API, to make the same call through both.
#pragma once

#include <cstdint>

#include "riffle/c/riffle.h"
#include "riffle/riffle.h"

namespace riffle::test {

inline riffle_matrix ToC(const MatrixView& x) {
  return {x.data, x.rows, x.cols, x.row_stride, static_cast<riffle_dtype>(x.dtype), 0};
}

inline riffle_heads ToC(const HeadsView& x) {
  return {x.data,
          x.tokens,
          x.heads,
          x.head_dim,
          x.token_stride,
          x.head_stride,
          static_cast<riffle_dtype>(x.dtype),
          0};
}

inline riffle_paged_kv ToC(const PagedKv& kv) {
  riffle_paged_kv c = {};
  c.size = sizeof(c);
  c.data = const_cast<void*>(kv.data);
  c.num_pages = kv.num_pages;
  c.page_size = kv.page_size;
  c.kv_heads = kv.kv_heads;
  c.head_dim = kv.head_dim;
  c.page_stride = kv.page_stride;
  c.token_stride = kv.token_stride;
  c.head_stride = kv.head_stride;
  c.scales.data = kv.scales.data;
  c.scales.dtype = static_cast<riffle_dtype>(kv.scales.dtype);
  c.scales.page_stride = kv.scales.page_stride;
  c.scales.token_stride = kv.scales.token_stride;
  c.scales.head_stride = kv.scales.head_stride;
  c.scales.group_stride = kv.scales.group_stride;
  c.scales.group = kv.scales.group;
  c.scales.divisor = kv.scales.divisor;
  c.dtype = static_cast<riffle_dtype>(kv.dtype);
  c.format = static_cast<riffle_kv_format>(kv.format);
  return c;
}

inline riffle_paged_batch ToC(const PagedBatch& batch) {
  const auto type = [](int64_t element_size) {
    return element_size == 8 ? RIFFLE_INDEX_I64 : RIFFLE_INDEX_I32;
  };
  const auto type_of = [&](const IndexSpan& list) {
    return type(list.empty() ? 4 : list.size_bytes() / static_cast<int64_t>(list.size()));
  };
  riffle_paged_batch c = {};
  c.size = sizeof(c);
  c.sequences = static_cast<int64_t>(batch.kv_lens.size());
  c.cu_q_lens = batch.cu_q_lens.empty() ? nullptr : batch.cu_q_lens.data();
  c.cu_q_lens_type = type_of(batch.cu_q_lens);
  c.kv_lens = batch.kv_lens.data();
  c.kv_lens_type = type_of(batch.kv_lens);
  c.page_table = batch.page_table.data();
  c.page_table_type = type(batch.page_table.element_size());
  c.max_pages = batch.max_pages;
  c.page_table_stride = batch.page_table_stride;
  return c;
}

inline riffle_mask ToC(const AttentionMask& mask) {
  return {mask.data,
          mask.tokens,
          mask.heads,
          mask.keys,
          mask.token_stride,
          mask.head_stride,
          mask.key_stride,
          static_cast<riffle_dtype>(mask.dtype),
          0};
}

inline riffle_attention_options ToC(const AttentionOptions& options) {
  riffle_attention_options c = {};
  c.size = sizeof(c);
  c.has_scale = options.scale.has_value() ? 1 : 0;
  c.scale = options.scale.value_or(0.0f);
  c.not_causal = options.causal ? 0 : 1;
  c.window = options.window.value_or(0);
  c.has_window_right = options.window_right.has_value() ? 1 : 0;
  c.window_right = options.window_right.value_or(0);
  c.soft_cap = options.soft_cap.value_or(0.0f);
  c.sinks = options.sinks.empty() ? nullptr : options.sinks.data();
  c.alibi_slopes = options.alibi_slopes.empty() ? nullptr : options.alibi_slopes.data();
  c.mask = ToC(options.mask);
  c.bf16_products = options.bf16_products ? 1 : 0;
  return c;
}

}  // namespace riffle::test
