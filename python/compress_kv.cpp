// DeepSeek-V4's compressors: Python's arguments to riffle/compress_kv.h and back.
#include <optional>
#include <string>

#include "bindings.h"
#include "kernel_scope.h"
#include "riffle/compress_kv.h"
#include "sparse_arguments.h"

namespace riffle::python {
namespace {

MatrixView Matrix(const Array& x) {
  CheckAxes(x, 2, "[tokens, columns]");
  CheckLastAxisContiguous(x);
  return {x.data(), FloatingDType(x), x.axis(0).size, x.axis(1).size, x.axis(0).stride};
}

void CheckContiguousRows(const OptionalMatrix& x) {
  if (x.rows() > 1 && x.stride() != x.cols()) {
    ThrowValueError(std::string(x.array().name()) + " is not contiguous");
  }
}

nb::object PyCompressKv(nb::handle kv_object, nb::handle gates_object, nb::handle ratio,
                        nb::handle overlap, nb::handle gate_bias_object, nb::handle norm,
                        nb::handle norm_weight_object, nb::handle norm_eps,
                        nb::handle cos_sin_object, nb::handle cu_lens_object,
                        nb::handle first_entries_object, nb::handle out_object) {
  const Array kv_array(kv_object, "kv");
  const Array gates_array(gates_object, "gates");
  const MatrixView kv = Matrix(kv_array);
  const MatrixView gates = Matrix(gates_array);
  CompressOptions options;
  options.ratio = Int64(ratio, "ratio");
  CompressedEntries(0, options);  // checks ratio first, on which the shapes below depend
  options.overlap = Bool(overlap, "overlap");
  options.norm = Bool(norm, "norm");
  options.norm_eps = nb::cast<float>(norm_eps);
  const int64_t dim = options.overlap ? kv.cols / 2 : kv.cols;
  const OptionalMatrix gate_bias(gate_bias_object, "gate_bias", Element::kF32, "[ratio, columns]");
  if (gate_bias) {
    const int64_t shape[] = {options.ratio, kv.cols};
    CheckShape(gate_bias.array(), shape);
    CheckContiguousRows(gate_bias);
    options.gate_bias = gate_bias.data<float>();
  }
  std::optional<Array> norm_weight;
  if (!norm_weight_object.is_none()) {
    const Array& weight = norm_weight.emplace(norm_weight_object, "norm_weight");
    CheckElement(weight, Element::kF32);
    const int64_t shape[] = {dim};
    CheckShape(weight, shape);
    CheckLastAxisContiguous(weight);
    options.norm_weight = static_cast<const float*>(weight.data());
  }
  const OptionalMatrix cos_sin(cos_sin_object, "cos_sin", Element::kF32, "[positions, rope_dim]");
  if (cos_sin) {
    options.rope = {cos_sin.data<float>(), cos_sin.rows(), cos_sin.cols(), cos_sin.stride()};
  }
  std::optional<Indices> cu_lens;
  if (!cu_lens_object.is_none()) {
    options.cu_lens = cu_lens.emplace(cu_lens_object, "cu_lens", 1, "[sequences + 1]").get();
    if (options.cu_lens.empty()) {
      ThrowValueError("cu_lens is empty; it must have one element more than there are sequences");
    }
  }
  std::optional<Indices> first_entries;
  if (!first_entries_object.is_none()) {
    options.first_entries =
        first_entries.emplace(first_entries_object, "first_entries", 1, "[sequences]").get();
  }
  const int64_t entries = CompressedEntries(kv.rows, options);
  OutMatrix out(kv_array, out_object, kv_array.element(), entries, dim);
  {
    const KernelScope scope;
    CompressKv(kv, gates, {out.data(), out.stride()}, options);
  }
  return out.Finish();
}

}  // namespace

void BindCompressKv(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("compress_kv", &PyCompressKv, any, any, any, any, any, any, any, any, any, any, any, any);
}

}  // namespace riffle::python
