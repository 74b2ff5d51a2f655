#include "lm_head/linear_check.h"

#include <cstdlib>
#include <limits>

#include "core/check.h"
#include "core/strided.h"

namespace riffle::lm_head {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

int64_t ElementBytes(WeightFormat format) {
  return format == WeightFormat::kQ8_0 ? kQ8BlockBytes : format == WeightFormat::kF32 ? 4 : 2;
}

core::Strided RowsOf(const void* data, int64_t rows, int64_t stride, int64_t width,
                     int64_t element) {
  return {data,
          {rows, 1, 1},
          {core::SaturatingMul(stride, element), 0, 0},
          core::SaturatingMul(width, element)};
}

core::Strided RegionOf(const MatrixView& x) {
  return RowsOf(x.data, x.rows, x.row_stride, x.cols, static_cast<int64_t>(SizeOf(x.dtype)));
}

core::Strided RegionOf(const WeightView& w) {
  const int64_t element = ElementBytes(w.format);
  if (IsTransposed(w)) {
    return RowsOf(w.data, w.cols, w.col_stride, w.rows, element);
  }
  const int64_t width = w.format == WeightFormat::kQ8_0 ? w.cols / kQ8Block : w.cols;
  return RowsOf(w.data, w.rows, w.row_stride, width, element);
}

core::Strided RegionOf(const BiasView& bias) {
  const int64_t element = static_cast<int64_t>(SizeOf(bias.dtype));
  return RowsOf(bias.data, bias.data != nullptr ? 1 : 0, 0, bias.size, element);
}

void CheckWeight(const WeightView& w) {
  core::Check(w.format <= WeightFormat::kQ8_0, Code::kBadDType, "weight has the unknown format ",
              static_cast<int>(w.format));
  core::Check(w.rows >= 1 && w.rows <= kMaxInt, Code::kBadShape, "weight has ", w.rows,
              " rows, one for each output; 1 to ", kMaxInt, " are possible");
  core::Check(w.cols >= 0 && w.cols <= kMaxInt, Code::kBadShape, "weight has ", w.cols,
              " columns, one for each input; 0 to ", kMaxInt, " are possible");
  core::Check(w.data != nullptr || w.cols == 0, Code::kBadShape, "weight.data is null");
  if (w.format == WeightFormat::kQ8_0) {
    core::Check(w.cols % kQ8Block == 0, Code::kBadShape, "weight has ", w.cols,
                " columns, but those of Q8_0 come in blocks of ", kQ8Block);
    core::Check(w.cols <= 1 || w.col_stride == 1, Code::kBadShape,
                "weight.col_stride = ", w.col_stride,
                " but must be 1: the blocks of a Q8_0 row are contiguous");
  }
  core::Check(w.cols <= 1 || w.rows <= 1 || w.col_stride == 1 || w.row_stride == 1, Code::kBadShape,
              "weight has the strides ", w.row_stride, " and ", w.col_stride,
              "; along one of its axes it must be contiguous");
}

// Checks that an output [rows, width] overlaps neither itself nor anything that is read.
void CheckOutput(const char* name, const core::Strided& out, const MatrixView& x,
                 const WeightView& weight, const BiasView& bias) {
  core::CheckAddressable(name, out);
  if (out.empty()) {
    return;
  }
  core::Check(out.data != nullptr, Code::kBadShape, name, " is null");
  core::Check(!core::OverlapsItself(out), Code::kOverlap, "the row stride of ", name, ", ",
              out.stride[0], " bytes, makes its rows of ", out.width, " bytes overlap");
  core::Check(!core::Overlaps(out, RegionOf(x)), Code::kOverlap, name,
              " shares memory with x, which is only read");
  core::Check(!core::Overlaps(out, RegionOf(weight)), Code::kOverlap, name,
              " shares memory with weight, which is only read");
  core::Check(!core::Overlaps(out, RegionOf(bias)), Code::kOverlap, name,
              " shares memory with bias, which is only read");
}

}  // namespace

bool IsTransposed(const WeightView& weight) { return weight.cols > 1 && weight.col_stride != 1; }

void CheckLinearInputs(const MatrixView& x, const WeightView& weight, const BiasView& bias) {
  core::Check(x.dtype <= DType::kBF16, Code::kBadDType, "x has the unknown dtype ",
              static_cast<int>(x.dtype));
  core::Check(x.rows >= 0 && x.rows <= kMaxInt, Code::kBadShape, "x has ", x.rows, " rows; 0 to ",
              kMaxInt, " are possible");
  CheckWeight(weight);
  core::Check(x.cols == weight.cols, Code::kBadShape, "x has ", x.cols, " columns but weight has ",
              weight.cols);
  core::Check(x.data != nullptr || x.rows == 0 || x.cols == 0, Code::kBadShape, "x.data is null");
  core::CheckAddressable("x", RegionOf(x));
  core::CheckAddressable("weight", RegionOf(weight));
  if (bias.data != nullptr) {
    core::Check(bias.dtype <= DType::kBF16, Code::kBadDType, "bias has the unknown dtype ",
                static_cast<int>(bias.dtype));
    core::Check(bias.size == weight.rows, Code::kBadShape, "bias has ", bias.size,
                " elements but weight has ", weight.rows, " rows");
    core::CheckAddressable("bias", RegionOf(bias));
  }
}

void CheckLinear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
                 const LinearOptions& options) {
  CheckLinearInputs(x, weight, options.bias);
  CheckOutput("y", RowsOf(y.data, x.rows, y.row_stride, weight.rows, 4), x, weight, options.bias);
}

void CheckLinearTopK(const MatrixView& x, const WeightView& weight, int64_t k,
                     const LinearTopKOut& out, const LinearOptions& options) {
  CheckLinearInputs(x, weight, options.bias);
  core::Check(k >= 1 && k <= weight.rows, Code::kBadK, "k = ", k, " is not in 1..", weight.rows,
              ", the rows of weight");
  core::Check(out.index_type <= IndexType::kInt64, Code::kBadOption,
              "index_type = ", static_cast<int>(out.index_type), " is neither int32 nor int64");
  const core::Strided values = RowsOf(out.values, x.rows, out.values_stride, k, 4);
  const core::Strided indices = RowsOf(out.indices, x.rows, out.indices_stride, k,
                                       static_cast<int64_t>(SizeOf(out.index_type)));
  CheckOutput("values", values, x, weight, options.bias);
  CheckOutput("indices", indices, x, weight, options.bias);
  core::Check(!core::Overlaps(values, indices), Code::kOverlap,
              "values shares memory with indices");
}

}  // namespace riffle::lm_head
