#include "top_k_node.h"

#include <limits>

namespace riffle::llama {
namespace {

// Whether all axes but the first can be joined into one axis of rows, `stride` bytes apart.
bool RowsLieEvenly(const ggml::Tensor& tensor, size_t& stride) {
  stride = tensor.nb[1];
  size_t next = tensor.nb[1];
  for (int axis = 1; axis < 4; ++axis) {
    if (tensor.ne[axis] != 1 && tensor.nb[axis] != next) {
      return false;
    }
    next *= static_cast<size_t>(tensor.ne[axis]);
  }
  return stride % sizeof(float) == 0;
}

}  // namespace

std::optional<TopKNode> ReadTopK(const Host& host, const ggml::Tensor& node, std::string& reason) {
  const ggml::Tensor& x = *node.src[0];
  const std::optional<RowFormat> format = host.Format(x.type);
  size_t x_stride = 0;
  size_t out_stride = 0;
  if (!format || format->dtype != DType::kF32 || x.nb[0] != sizeof(float) ||
      node.nb[0] != sizeof(int32_t) || !RowsLieEvenly(x, x_stride) ||
      !RowsLieEvenly(node, out_stride) || x.ne[0] > std::numeric_limits<int32_t>::max()) {
    reason = "type or strides of a top-k";
    return std::nullopt;
  }
  constexpr auto kBytes = static_cast<int64_t>(sizeof(float));
  TopKNode result;
  result.x = {x.data, DType::kF32, x.ne[1] * x.ne[2] * x.ne[3], x.ne[0],
              static_cast<int64_t>(x_stride) / kBytes};
  result.k = node.ne[0];
  result.columns = {static_cast<int32_t*>(node.data), static_cast<int64_t>(out_stride) / kBytes};
  return result;
}

void Run(const TopKNode& node, std::vector<int32_t>& begins, std::vector<int32_t>& ends) {
  const auto rows = static_cast<size_t>(node.x.rows);
  begins.assign(rows, 0);
  ends.assign(rows, static_cast<int32_t>(node.x.cols));
  TopKOptions options;
  options.sorted = false;
  TopKPerRow(node.x, begins, ends, node.k, node.columns, options);
}

}  // namespace riffle::llama
