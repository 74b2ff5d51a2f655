// The LM head: Python's arguments to riffle/linear_topk.h and back.
#include <optional>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "riffle/linear_topk.h"

namespace riffle::python {
namespace {

WeightFormat FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return WeightFormat::kF32;
    case DType::kF16:
      return WeightFormat::kF16;
    default:
      break;
  }
  return WeightFormat::kBF16;
}

nb::object PyLinearTopK(nb::handle x_object, nb::handle weight_object, nb::handle k_object,
                        nb::handle bias_object) {
  const Array x(x_object, "x");
  const DType dtype = FloatingDType(x);
  CheckAxes(x, 2, "[rows, d]");
  CheckLastAxisContiguous(x);
  const Array weight(weight_object, "weight");
  const WeightFormat format = FormatOf(FloatingDType(weight));
  CheckAxes(weight, 2, "[vocab, d]");
  const int64_t k = Int64(k_object, "k");
  LinearOptions options;
  std::optional<Array> bias;
  if (!bias_object.is_none()) {
    bias.emplace(bias_object, "bias");
    const DType bias_dtype = FloatingDType(*bias);
    CheckAxes(*bias, 1, "[vocab]");
    CheckLastAxisContiguous(*bias);
    options.bias = {bias->data(), bias_dtype, bias->axis(0).size};
  }
  const WeightView weight_view{weight.data(),         format,
                               weight.axis(0).size,   weight.axis(1).size,
                               weight.axis(0).stride, weight.axis(1).stride};
  MatrixView x_view{x.data(), dtype, x.axis(0).size, x.axis(1).size, x.axis(0).stride};
  // The door's own checks before anything is allocated.
  MatrixView no_rows = x_view;
  no_rows.rows = 0;
  LinearTopK(no_rows, weight_view, k, {}, options);
  const int64_t shape[] = {x_view.rows, k};
  NewArray values = NewArrayLike(x, Element::kF32, shape);
  NewArray indices = NewArrayLike(x, Element::kI32, shape);
  {
    const KernelScope scope;
    LinearTopK(x_view, weight_view, k,
               {static_cast<float*>(values.data), k, static_cast<int32_t*>(indices.data), k},
               options);
  }
  return nb::make_tuple(Finished(x, std::move(values)), Finished(x, std::move(indices)));
}

}  // namespace

void BindLinear(nb::module_& m) {
  const auto any = nb::arg().none();
  m.def("linear_top_k", &PyLinearTopK, any, any, any, any);
}

}  // namespace riffle::python
