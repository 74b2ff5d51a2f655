#include "c_api/convert.h"

namespace riffle::c_api {
namespace {

KvScales ToScales(const char* name, const riffle_kv_scales& scales) {
  return {scales.data,        ToDType(name, scales.dtype),
          scales.page_stride, scales.token_stride,
          scales.head_stride, scales.group_stride,
          scales.group,       scales.divisor == 0 ? 1.0f : scales.divisor};
}

}  // namespace

DType ToDType(const char* name, riffle_dtype dtype) {
  core::Check(dtype >= 0 && dtype < kNumDTypes, Code::kBadDType, name, ".dtype = ", dtype,
              " is not a riffle_dtype");
  return static_cast<DType>(dtype);
}

IndexType ToIndexType(const char* name, riffle_index_type type) {
  core::Check(type == RIFFLE_INDEX_I32 || type == RIFFLE_INDEX_I64, Code::kBadOption, name, " = ",
              type, " is not a riffle_index_type");
  return static_cast<IndexType>(type);
}

KvFormat ToKvFormat(const char* name, riffle_kv_format format) {
  core::Check(format >= 0 && format < kNumKvFormats, Code::kBadDType, name, ".format = ", format,
              " is not a riffle_kv_format");
  return static_cast<KvFormat>(format);
}

MatrixView ToMatrix(const char* name, const riffle_matrix* x) {
  NotNull(name, x);
  CheckReserved(name, x->reserved);
  return {x->data, ToDType(name, x->dtype), x->rows, x->cols, x->row_stride};
}

HeadsView ToHeads(const char* name, const riffle_heads* x) {
  NotNull(name, x);
  CheckReserved(name, x->reserved);
  return {x->data,     ToDType(name, x->dtype), x->tokens,     x->heads,
          x->head_dim, x->token_stride,         x->head_stride};
}

PagedKv ToPagedKv(const char* name, const riffle_paged_kv* in) {
  const riffle_paged_kv kv = ReadSized(name, in);
  return {kv.data,
          ToDType(name, kv.dtype),
          kv.num_pages,
          kv.page_size,
          kv.kv_heads,
          kv.head_dim,
          kv.page_stride,
          kv.token_stride,
          kv.head_stride,
          ToScales(name, kv.scales),
          ToKvFormat(name, kv.format)};
}

riffle_paged_kv FromPagedKv(const PagedKv& kv) {
  const KvScales& scales = kv.scales;
  return {
      sizeof(riffle_paged_kv),
      const_cast<void*>(kv.data),
      kv.num_pages,
      kv.page_size,
      kv.kv_heads,
      kv.head_dim,
      kv.page_stride,
      kv.token_stride,
      kv.head_stride,
      {scales.data, scales.page_stride, scales.token_stride, scales.head_stride,
       scales.group_stride, scales.group, static_cast<riffle_dtype>(scales.dtype), scales.divisor},
      static_cast<riffle_dtype>(kv.dtype),
      static_cast<riffle_kv_format>(kv.format)};
}

IndexSpan ToIndexSpan(const char* name, const void* data, int64_t count, riffle_index_type type) {
  if (ToIndexType(name, type) == IndexType::kInt32) {
    return ToSpan(name, static_cast<const int32_t*>(data), count);
  }
  return ToSpan(name, static_cast<const int64_t*>(data), count);
}

}  // namespace riffle::c_api
