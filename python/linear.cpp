// The LM head: Python's arguments to riffle/linear_topk.h and back.
#include "riffle/linear_topk.h"

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"

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

// Q8_0 weights: uint8 [vocab, bytes of a row].
WeightView Q8Weights(const Array& weight) {
  CheckElement(weight, Element::kU8);
  CheckAxes(weight, 2, "[vocab, bytes of a row]");
  CheckLastAxisContiguous(weight);
  const auto [rows, row_stride] = weight.axis(0);
  const int64_t bytes = weight.axis(1).size;
  if (bytes % kQ8BlockBytes != 0) {
    ThrowValueError("weight has rows of " + std::to_string(bytes) + " bytes; those of Q8_0 are " +
                    "blocks of " + std::to_string(kQ8BlockBytes));
  }
  if (rows > 1 && row_stride % kQ8BlockBytes != 0) {
    ThrowValueError("weight's rows are " + std::to_string(row_stride) + " bytes apart, not a " +
                    "multiple of the " + std::to_string(kQ8BlockBytes) + " of a block of Q8_0");
  }
  return {weight.data(),
          WeightFormat::kQ8_0,
          rows,
          bytes / kQ8BlockBytes * kQ8Block,
          row_stride / kQ8BlockBytes,
          1};
}

WeightView Weights(const Array& weight, nb::handle format) {
  if (!format.is_none()) {
    std::string_view text;
    if (!nb::try_cast(format, text) || text != "q8_0") {
      ThrowValueError("weight_format = " + Repr(format) + " is none of None, 'q8_0'");
    }
    return Q8Weights(weight);
  }
  const WeightFormat dense = FormatOf(FloatingDType(weight));
  CheckAxes(weight, 2, "[vocab, d]");
  return {weight.data(),         dense,
          weight.axis(0).size,   weight.axis(1).size,
          weight.axis(0).stride, weight.axis(1).stride};
}

// The operands of both calls.
struct Operands {
  Array x, weight;
  std::optional<Array> bias;
  MatrixView x_view;
  WeightView weight_view;
  LinearOptions options;

  Operands(nb::handle x_object, nb::handle weight_object, nb::handle weight_format,
           nb::handle bias_object)
      : x(x_object, "x"), weight(weight_object, "weight") {
    const DType dtype = FloatingDType(x);
    CheckAxes(x, 2, "[rows, d]");
    CheckLastAxisContiguous(x);
    x_view = {x.data(), dtype, x.axis(0).size, x.axis(1).size, x.axis(0).stride};
    weight_view = Weights(weight, weight_format);
    if (!bias_object.is_none()) {
      bias.emplace(bias_object, "bias");
      const DType bias_dtype = FloatingDType(*bias);
      CheckAxes(*bias, 1, "[vocab]");
      CheckLastAxisContiguous(*bias);
      options.bias = {bias->data(), bias_dtype, bias->axis(0).size};
    }
  }

  // x without rows: entry points check their arguments with it before anything is allocated.
  MatrixView NoRows() const {
    MatrixView no_rows = x_view;
    no_rows.rows = 0;
    return no_rows;
  }
};

nb::object PyLinear(nb::handle x_object, nb::handle weight_object, nb::handle weight_format,
                    nb::handle bias_object, nb::handle out_object) {
  const Operands on(x_object, weight_object, weight_format, bias_object);
  Linear(on.NoRows(), on.weight_view, {}, on.options);
  const int64_t shape[] = {on.x_view.rows, on.weight_view.rows};
  NewArray fresh;
  std::optional<Array> out;
  OutView<float> y;
  if (out_object.is_none()) {
    fresh = NewArrayLike(on.x, Element::kF32, shape);
    y = {static_cast<float*>(fresh.data), shape[1]};
  } else {
    out.emplace(out_object, "out", Access::kWrite);
    CheckElement(*out, Element::kF32);
    CheckShape(*out, shape);
    CheckLastAxisContiguous(*out);
    y = {static_cast<float*>(out->data()), shape[0] > 1 ? out->axis(0).stride : shape[1]};
  }
  {
    const KernelScope scope;
    Linear(on.x_view, on.weight_view, y, on.options);
  }
  return out ? nb::borrow(out->object()) : Finished(on.x, std::move(fresh));
}

nb::object PyLinearTopK(nb::handle x_object, nb::handle weight_object, nb::handle k_object,
                        nb::handle weight_format, nb::handle bias_object) {
  const Operands on(x_object, weight_object, weight_format, bias_object);
  const int64_t k = Int64(k_object, "k");
  LinearTopK(on.NoRows(), on.weight_view, k, {}, on.options);
  const int64_t shape[] = {on.x_view.rows, k};
  NewArray values = NewArrayLike(on.x, Element::kF32, shape);
  NewArray indices = NewArrayLike(on.x, Element::kI32, shape);
  {
    const KernelScope scope;
    LinearTopK(on.x_view, on.weight_view, k,
               {static_cast<float*>(values.data), k, static_cast<int32_t*>(indices.data), k},
               on.options);
  }
  return nb::make_tuple(Finished(on.x, std::move(values)), Finished(on.x, std::move(indices)));
}

}  // namespace

void BindLinear(nb::module_& m) {
  const auto any = nb::arg().none();
  m.def("linear", &PyLinear, any, any, any, any, any);
  m.def("linear_top_k", &PyLinearTopK, any, any, any, any, any);
}

}  // namespace riffle::python
