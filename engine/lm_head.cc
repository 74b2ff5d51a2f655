#include "engine/lm_head.h"

#include <algorithm>
#include <optional>

#include "engine/layers/row_kernels.h"
#include "riffle/topk.h"

namespace riffle::engine {
namespace {

std::optional<WeightFormat> FormatOf(TensorType type) {
  switch (type) {
    case TensorType::kQ8_0:
      return WeightFormat::kQ8_0;
    case TensorType::kF32:
      return WeightFormat::kF32;
    case TensorType::kF16:
      return WeightFormat::kF16;
    case TensorType::kBF16:
      return WeightFormat::kBF16;
    default:
      return std::nullopt;
  }
}

}  // namespace

LmHead::LmHead(const GgufFile& file, const Tensor& tensor, ThreadPool* pool)
    : vocab_(tensor.shape[1]), hidden_(tensor.shape[0]) {
  const std::optional<WeightFormat> format = FormatOf(tensor.type);
  if (!format) {
    weights_ = Pack(file, tensor, {}, pool);
    return;
  }
  WeightView view;
  view.data = tensor.data;
  view.format = *format;
  view.rows = vocab_;
  view.cols = hidden_;
  view.row_stride = *format == WeightFormat::kQ8_0 ? hidden_ / kQ8Block : hidden_;
  view.col_stride = 1;
  weights_ = view;
}

void LmHead::TopK(const float* hidden, int64_t rows, int64_t k, float* values, int32_t* tokens,
                  LmHeadScratch& scratch, ThreadPool* pool) const {
  if (const auto* view = std::get_if<WeightView>(&weights_)) {
    LinearOptions options;
    options.pool = pool;
    LinearTopK(View(hidden, rows, hidden_), *view, k, {values, k, tokens, k}, options);
    return;
  }
  TopKOptions options;
  options.pool = pool;
  for (int64_t first = 0; first < rows; first += kStoredRows) {
    const int64_t count = std::min(kStoredRows, rows - first);
    const MatrixView logits = Logits(hidden + first * hidden_, count, scratch, pool);
    riffle::TopK(logits, k, View(values + first * k, tokens + first * k, k), options);
  }
}

MatrixView LmHead::Logits(const float* hidden, int64_t rows, LmHeadScratch& scratch,
                          ThreadPool* pool) const {
  const auto* matrix = std::get_if<Matrix>(&weights_);
  const int64_t stride = matrix != nullptr ? matrix->panels() * kPanel : vocab_;
  scratch.logits.resize(static_cast<size_t>(rows * stride));
  float* logits = scratch.logits.data();
  if (matrix == nullptr) {
    LinearOptions options;
    options.pool = pool;
    Linear(View(hidden, rows, hidden_), std::get<WeightView>(weights_), {logits, stride}, options);
  } else {
    scratch.rounded.Resize(rows, hidden_);
    for (int64_t row = 0; row < rows; ++row) {
      RoundRow(hidden + row * hidden_, row, scratch.rounded);
    }
    const Product product[] = {{matrix, logits, stride}};
    Multiply(scratch.rounded, product, pool);
  }
  return {logits, DType::kF32, rows, vocab_, stride};
}

int64_t LmHead::bytes() const {
  if (const auto* matrix = std::get_if<Matrix>(&weights_)) {
    return matrix->bytes();
  }
  const auto& view = std::get<WeightView>(weights_);
  constexpr int64_t kBytes[] = {4, 2, 2, kQ8BlockBytes};  // by WeightFormat
  return view.rows * view.row_stride * kBytes[static_cast<int>(view.format)];
}

}  // namespace riffle::engine
