#include "kv_cache/token_writer.h"

#include <cstdint>

namespace riffle::kv_cache {
namespace {

int64_t StrideBytes(int64_t stride, DType dtype, int64_t size) {
  return core::StrideBytes(stride, static_cast<int64_t>(SizeOf(dtype)), size);
}

// Empty scales if the pool has none: their dtype and group may then be anything.
KvScales ScalesOf(const PagedKvOut& pages) {
  const bool has_scales = pages.scales.data != nullptr || pages.computed_scales != nullptr;
  return has_scales ? pages.scales : KvScales();
}

}  // namespace

TokenWriter::TokenWriter(const WriteKernels& kernels, const HeadsView& in, const PagedKvOut& pages)
    : write_(kernels.from[static_cast<size_t>(in.dtype)]
                 .to[static_cast<size_t>(OutFormat(pages.dtype, pages.format))]),
      in_(static_cast<const uint8_t*>(in.data)),
      out_(static_cast<uint8_t*>(pages.data)),
      scales_(static_cast<const uint8_t*>(pages.scales.data)),
      computed_scales_(static_cast<uint8_t*>(pages.computed_scales)),
      in_token_(StrideBytes(in.token_stride, in.dtype, in.tokens)),
      out_page_(StrideBytes(pages.page_stride, pages.dtype, pages.num_pages)),
      out_token_(StrideBytes(pages.token_stride, pages.dtype, pages.page_size)),
      scale_page_(StrideBytes(ScalesOf(pages).page_stride, ScalesOf(pages).dtype, pages.num_pages)),
      scale_token_(
          StrideBytes(ScalesOf(pages).token_stride, ScalesOf(pages).dtype, pages.page_size)),
      tokens_(in.tokens),
      num_pages_(pages.num_pages),
      page_size_(pages.page_size) {
  HWY_DASSERT(in.dtype <= DType::kBF16 && in.head_dim == pages.head_dim);
  HWY_DASSERT(pages.format == KvFormat::kPlain || pages.head_dim % 32 == 0);
  const KvScales scales = ScalesOf(pages);
  const int64_t in_row = in.head_dim * static_cast<int64_t>(SizeOf(in.dtype));
  const int64_t out_row = RowBytes(pages);
  args_.heads = in.heads;
  args_.head_dim = in.head_dim;
  args_.in_head = StrideBytes(in.head_stride, in.dtype, in.heads);
  args_.out_head = StrideBytes(pages.head_stride, pages.dtype, in.heads);
  args_.scale_dtype = scales.dtype;
  args_.scale_head = StrideBytes(scales.head_stride, scales.dtype, in.heads);
  args_.group = scales.group > 0 ? std::min(scales.group, in.head_dim) : in.head_dim;
  args_.scale_group =
      StrideBytes(scales.group_stride, scales.dtype, args_.group < in.head_dim ? in.head_dim : 1);
  args_.divisor = scales.divisor;
  token_bytes_ = in.heads * std::max(in_row, out_row);
  const bool has_scales = scales_ != nullptr || computed_scales_ != nullptr;
  if (!has_scales && args_.in_head == in_row && args_.out_head == out_row) {
    args_.head_dim *= args_.heads;  // a token's heads are one row
    args_.heads = 1;
  }
  const bool is_copy = pages.format == KvFormat::kPlain && pages.dtype == in.dtype;
  const int64_t steps = static_cast<int64_t>(reinterpret_cast<intptr_t>(pages.data)) | out_page_ |
                        out_token_ | args_.out_head | out_row;
  args_.streams = is_copy && steps % kLine == 0 && in.tokens >= kMinStreamBytes / token_bytes_;
}

}  // namespace riffle::kv_cache
