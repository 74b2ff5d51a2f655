#include "sparse/make_indexer_args.h"

#include "core/strided.h"
#include "sparse/indexer_kernels.h"

namespace riffle::sparse {
namespace {

bool ExactInBF16(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kE4M3 || dtype == DType::kI8;
}

Product ProductOf(DType q, DType keys) {
  if (keys == DType::kI8) {
    return Product::kInt8;
  }
  return ExactInBF16(q) && ExactInBF16(keys) && HasBF16Product() ? Product::kBF16 : Product::kF32;
}

}  // namespace

IndexerArgs MakeIndexerArgs(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys,
                            IndexActivation activation, const PlannedIndex& plan) {
  IndexerArgs args;
  const auto q_element = static_cast<int64_t>(SizeOf(q.dtype));
  args.q = static_cast<const uint8_t*>(q.data);
  args.q_dtype = q.dtype;
  args.q_token_stride = core::SaturatingMul(q.token_stride, q_element);
  args.q_head_stride = core::SaturatingMul(q.head_stride, q_element);
  args.heads = static_cast<int>(q.heads);
  args.head_dim = static_cast<int>(q.head_dim);
  args.weights = weights.data;
  args.weight_stride = weights.token_stride;
  args.relu = activation == IndexActivation::kRelu;
  args.keys = static_cast<const uint8_t*>(keys.data);
  args.page_size = keys.page_size;
  if (keys.format != IndexKeyFormat::kPlain) {  // rows, then four bytes of scales a key
    args.mxfp4 = keys.format == IndexKeyFormat::kMxFp4;
    args.key_dtype = DType::kE4M3;
    args.key_bytes = args.mxfp4 ? keys.head_dim / 2 : keys.head_dim;
    args.page_stride = keys.page_stride;
    args.token_stride = args.key_bytes;
    args.scales = args.keys + keys.page_size * args.key_bytes;
    args.scale_page_stride = keys.page_stride;
    args.scale_token_stride = sizeof(float);
  } else {
    const auto element = static_cast<int64_t>(SizeOf(keys.dtype));
    args.key_dtype = keys.dtype;
    args.key_bytes = keys.head_dim * element;
    args.page_stride = core::SaturatingMul(keys.page_stride, element);
    args.token_stride = core::SaturatingMul(keys.token_stride, element);
    args.scales = reinterpret_cast<const uint8_t*>(keys.scales.data);
    args.scale_page_stride = core::SaturatingMul(keys.scales.page_stride, int64_t{sizeof(float)});
    args.scale_token_stride = core::SaturatingMul(keys.scales.token_stride, int64_t{sizeof(float)});
  }
  args.page_numbers = plan.page_numbers.data();
  args.page_begin = plan.page_begin.data();
  args.ranges = plan.ranges.data();
  args.product = ProductOf(q.dtype, args.key_dtype);
  return args;
}

}  // namespace riffle::sparse
