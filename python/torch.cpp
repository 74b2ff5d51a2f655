// The parts of selection that riffle.torch needs: int64 indices, the smallest, clamped ranges.
// Arguments for which PyTorch words its own errors have been checked in riffle/torch.
#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "riffle/topk.h"
#include "rows.h"
#include "transpose.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

namespace riffle::python {
namespace {

// Elements that the kernels of top-k support; the operator handles the others.
bool IsSelectable(Element element) { return element < Element::kBool; }

// A Python int; nullopt if it is none or does not fit.
std::optional<int64_t> ExactInt(nb::handle number) {
  if (!PyLong_CheckExact(number.ptr())) {
    return std::nullopt;
  }
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  return overflow == 0 ? std::optional(value) : std::nullopt;
}

// The arguments of torch.topk, once it is known that this file supports them.
struct Question {
  int64_t k;
  int dim;
  TopKOptions options;
};

bool IsBool(nb::handle object) { return object.ptr() == Py_True || object.ptr() == Py_False; }

// nullopt where PyTorch must report an error, and for tensors that are not plain memory of numbers.
std::optional<Question> ParseRequest(const Array& x, nb::handle k_object, nb::handle dim_object,
                                     nb::handle largest, nb::handle sorted) {
  const std::optional<int64_t> k = ExactInt(k_object);
  const std::optional<int64_t> dim = ExactInt(dim_object);
  const int64_t ndim = x.ndim();
  if (x.framework() != Framework::kTorch || !IsSelectable(x.element()) || x.data() == nullptr ||
      x.empty() || !k || !dim || *dim < -ndim || *dim >= ndim || !IsBool(largest) ||
      !IsBool(sorted)) {
    return std::nullopt;
  }
  const int axis = static_cast<int>(*dim < 0 ? *dim + ndim : *dim);
  const int64_t n = x.axis(axis).size;
  if (*k < 1 || *k > n || n > std::numeric_limits<int32_t>::max()) {
    return std::nullopt;
  }
  Question question{*k, axis, {}};
  question.options.largest = largest.ptr() == Py_True;
  question.options.sorted = sorted.ptr() == Py_True;
  return question;
}

// Selects in the rows of x, whose selected axis is the last one and contiguous.
void RunInPlace(const Array& x, const Question& question, const NewArray& values,
                const NewArray& indices) {
  const Rows rows(x);
  const KernelScope scope;
  for (int64_t block = 0; block < rows.blocks(); ++block) {
    const int64_t first = block * rows.block_rows() * question.k;
    TopKOut out;
    out.values = static_cast<uint8_t*>(values.data) + first * SizeOf(x.element());
    out.indices = static_cast<int64_t*>(indices.data) + first;
    out.index_type = IndexType::kInt64;
    out.values_stride = out.indices_stride = question.k;
    TopK({rows.Block(block), SelectionDType(x), rows.block_rows(), rows.cols(), rows.stride()},
         question.k, out, question.options);
  }
}

// The axes of x except `dim`, merged as far as their strides allow.
std::vector<Axis> OtherAxes(const Array& x, int dim) {
  std::vector<Axis> axes;
  for (int i = 0; i < x.ndim(); ++i) {
    const Axis& axis = x.axis(i);
    if (i == dim || axis.size == 1) {
      continue;
    }
    if (!axes.empty() && axes.back().stride == axis.stride * axis.size) {
      axes.back() = {axes.back().size * axis.size, axis.stride};
    } else {
      axes.push_back(axis);
    }
  }
  if (axes.empty()) {
    axes.push_back({1, 0});
  }
  return axes;
}

// Copies x so that the selected axis is last: rows of all other axes in row-major order.
template <typename T>
void GatherRows(const Array& x, int dim, void* to, int64_t to_stride) {
  const std::vector<Axis> axes = OtherAxes(x, dim);
  const Axis& inner = axes.back();
  int64_t blocks = 1;
  for (size_t i = 0; i + 1 < axes.size(); ++i) {
    blocks *= axes[i].size;
  }
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t offset = 0;
    int64_t rest = block;
    for (size_t i = axes.size() - 1; i-- > 0;) {
      offset += rest % axes[i].size * axes[i].stride;
      rest /= axes[i].size;
    }
    Transpose<T>(static_cast<const uint8_t*>(x.data()) + offset * static_cast<int64_t>(sizeof(T)),
                 x.axis(dim).size, inner.size, x.axis(dim).stride, inner.stride,
                 static_cast<T*>(to) + block * inner.size * to_stride, to_stride);
  }
}

// Moves results [outer, inner, k] to [outer, k, inner].
template <typename T>
void PlaceAxis(const void* rows, int64_t outer, int64_t inner, int64_t k, void* to) {
  const int64_t size = inner * k;
  for (int64_t o = 0; o < outer; ++o) {
    Transpose<T>(static_cast<const T*>(rows) + o * size, inner, k, k, 1,
                 static_cast<T*>(to) + o * size, inner);
  }
}

// Calls f.operator()<T>() with T the unsigned integer of `bytes` bytes.
template <typename F>
void WithWord(int64_t bytes, const F& f) {
  switch (bytes) {
    case 1:
      return f.template operator()<uint8_t>();
    case 2:
      return f.template operator()<uint16_t>();
    case 4:
      return f.template operator()<uint32_t>();
    default:
      return f.template operator()<uint64_t>();
  }
}

// Selects along any axis: copies to rows first, and results to their places afterwards.
void RunGathered(const Array& x, const Question& question, const NewArray& values,
                 const NewArray& indices) {
  const int64_t element = SizeOf(x.element());
  const int64_t n = x.axis(question.dim).size;
  int64_t outer = 1;
  int64_t inner = 1;
  for (int i = 0; i < x.ndim(); ++i) {
    (i < question.dim ? outer : inner) *= i == question.dim ? 1 : x.axis(i).size;
  }
  const int64_t rows = outer * inner;
  const int64_t k = question.k;
  // One cache line more than n: rows a power of two apart would share a few sets of the cache.
  const int64_t stride = n + 64 / element;
  const int64_t copy_shape[] = {rows, stride};
  const int64_t out_shape[] = {rows, k};
  const NewArray copy = NewArrayLike(x, x.element(), copy_shape);
  const bool in_place = inner == 1 || k == 1;  // the results are in their places already
  const NewArray row_values = in_place ? values : NewArrayLike(x, x.element(), out_shape);
  const NewArray row_indices = in_place ? indices : NewArrayLike(x, Element::kI64, out_shape);
  const KernelScope scope;
  WithWord(element, [&]<typename T>() { GatherRows<T>(x, question.dim, copy.data, stride); });
  TopKOut out;
  out.values = row_values.data;
  out.indices = row_indices.data;
  out.index_type = IndexType::kInt64;
  out.values_stride = out.indices_stride = k;
  TopK({copy.data, SelectionDType(x), rows, n, stride}, k, out, question.options);
  if (in_place) {
    return;
  }
  PlaceAxis<uint64_t>(row_indices.data, outer, inner, k, indices.data);
  WithWord(element,
           [&]<typename T>() { PlaceAxis<T>(row_values.data, outer, inner, k, values.data); });
}

// The result of torch.topk; None if another path must answer: see ParseRequest.
nb::object PyTorchTopK(nb::handle input, nb::handle k, nb::handle dim, nb::handle largest,
                       nb::handle sorted, nb::handle result_type) {
  std::optional<Array> array;
  try {
    array.emplace(input, "input");
  } catch (const nb::builtin_exception&) {
    return nb::none();
  } catch (const nb::python_error&) {
    return nb::none();
  }
  const Array& x = *array;
  const std::optional<Question> question = ParseRequest(x, k, dim, largest, sorted);
  if (!question) {
    return nb::none();
  }
  int64_t shape[kMaxAxes];
  for (int i = 0; i < x.ndim(); ++i) {
    shape[i] = i == question->dim ? question->k : x.axis(i).size;
  }
  const std::span<const int64_t> out_shape(shape, static_cast<size_t>(x.ndim()));
  NewArray values = NewArrayLike(x, x.element(), out_shape);
  NewArray indices = NewArrayLike(x, Element::kI64, out_shape);
  const Axis& axis = x.axis(question->dim);
  if (question->dim == x.ndim() - 1 && (axis.stride == 1 || axis.size == 1)) {
    RunInPlace(x, *question, values, indices);
  } else {
    RunGathered(x, *question, values, indices);
  }
  // torch.return_types.topk is a struct sequence; made directly in a third of a call's time.
  nb::object result =
      Checked(PyStructSequence_New(reinterpret_cast<PyTypeObject*>(result_type.ptr())));
  PyStructSequence_SetItem(result.ptr(), 0, values.object.release().ptr());
  PyStructSequence_SetItem(result.ptr(), 1, indices.object.release().ptr());
  return result;
}

// The int32 [rows, k] buffer of a per-row call.
OutView<int32_t> Buffer(const Array& indices, int64_t rows, int64_t k) {
  CheckElement(indices, Element::kI32);
  CheckAxes(indices, 2, "[num_rows, top_k]");
  CheckLastAxisContiguous(indices);
  if (indices.axis(0).size < rows || indices.axis(1).size < k) {
    ThrowValueError("indices has shape " + indices.Shape() + "; at least (" + std::to_string(rows) +
                    ", " + std::to_string(k) + ") are to be written");
  }
  return {static_cast<int32_t*>(indices.data()), rows > 1 ? indices.axis(0).stride : k};
}

// logits [>= num_rows, n], columns contiguous.
MatrixView Logits(const Array& logits, int64_t num_rows) {
  CheckAxes(logits, 2, "[num_rows, n]");
  CheckLastAxisContiguous(logits);
  const DType dtype = SelectionDType(logits);
  if (num_rows < 0 || logits.axis(0).size < num_rows) {
    ThrowValueError("num_rows = " + std::to_string(num_rows) + " but logits has " +
                    std::to_string(logits.axis(0).size) + " rows");
  }
  return {logits.data(), dtype, num_rows, logits.axis(1).size, logits.axis(0).stride};
}

// The k best of the columns [starts[r], ends[r]), clamped to the columns of x.
void RunClamped(const MatrixView& x, std::span<const int32_t> starts, std::vector<int32_t>& ends,
                int64_t k, const OutView<int32_t>& out) {
  const auto limit =
      static_cast<int32_t>(std::min<int64_t>(x.cols, std::numeric_limits<int32_t>::max()));
  for (int32_t& end : ends) {
    end = std::min(end, limit);
  }
  TopKPerRow(x, starts, ends, k, out);
}

void PyTorchTopKPerRowPrefill(nb::handle logits_object, nb::handle starts_object,
                              nb::handle ends_object, nb::handle indices_object,
                              nb::handle num_rows_object, nb::handle k_object) {
  const int64_t num_rows = Int64(num_rows_object, "num_rows");
  const int64_t k = Int64(k_object, "top_k");
  const Array logits(logits_object, "logits");
  const MatrixView x = Logits(logits, num_rows);
  const Int32Span starts(starts_object, "row_starts");
  const Int32Span ends(ends_object, "row_ends");
  const Array indices(indices_object, "indices", Access::kWrite);
  const OutView<int32_t> out = Buffer(indices, num_rows, k);
  const auto rows = static_cast<size_t>(num_rows);
  if (starts.get().size() < rows || ends.get().size() < rows) {
    ThrowValueError("row_starts and row_ends have " + std::to_string(starts.get().size()) +
                    " and " + std::to_string(ends.get().size()) +
                    " elements for num_rows = " + std::to_string(num_rows));
  }
  const KernelScope scope;
  std::vector<int32_t> clamped(ends.get().begin(),
                               ends.get().begin() + static_cast<ptrdiff_t>(rows));
  RunClamped(x, starts.get().first(rows), clamped, k, out);
}

void PyTorchTopKPerRowDecode(nb::handle logits_object, nb::handle next_n_object,
                             nb::handle seq_lens_object, nb::handle indices_object,
                             nb::handle num_rows_object, nb::handle k_object) {
  const int64_t num_rows = Int64(num_rows_object, "num_rows");
  const int64_t k = Int64(k_object, "top_k");
  const int next_n = Int32(next_n_object, "next_n");
  const Array logits(logits_object, "logits");
  const MatrixView x = Logits(logits, num_rows);
  const Int32Span seq_lens(seq_lens_object, "seq_lens");
  const Array indices(indices_object, "indices", Access::kWrite);
  const OutView<int32_t> out = Buffer(indices, num_rows, k);
  if (next_n < 1) {
    ThrowValueError("next_n = " + std::to_string(next_n) + " is not positive");
  }
  if (static_cast<int64_t>(seq_lens.get().size()) < (num_rows + next_n - 1) / next_n) {
    ThrowValueError("seq_lens has " + std::to_string(seq_lens.get().size()) +
                    " elements for num_rows = " + std::to_string(num_rows) +
                    " with next_n = " + std::to_string(next_n));
  }
  const KernelScope scope;
  const std::vector<int32_t> starts(static_cast<size_t>(num_rows));
  std::vector<int32_t> ends(static_cast<size_t>(num_rows));
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t length = seq_lens.get()[static_cast<size_t>(row / next_n)];
    const int64_t end = length - next_n + row % next_n + 1;
    ends[static_cast<size_t>(row)] =
        static_cast<int32_t>(std::clamp<int64_t>(end, 0, std::numeric_limits<int32_t>::max()));
  }
  RunClamped(x, starts, ends, k, out);
}

}  // namespace

void BindTorch(nb::module_& m) {
  const auto any = nb::arg().none();
  m.def("torch_topk", &PyTorchTopK, any, any, any, any, any, any);
  m.def("torch_top_k_per_row_prefill", &PyTorchTopKPerRowPrefill, any, any, any, any, any, any);
  m.def("torch_top_k_per_row_decode", &PyTorchTopKPerRowDecode, any, any, any, any, any, any);
}

}  // namespace riffle::python
