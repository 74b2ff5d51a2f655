// What riffle.torch needs of selection: int64 indices, the smallest, ranges that are clamped.
// Arguments that PyTorch words its own errors for have been checked in riffle/torch.
#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "riffle/topk.h"
#include "rows.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

namespace riffle::python {
namespace {

bool IsFloating(Element element) {
  return element == Element::kF32 || element == Element::kF16 || element == Element::kBF16;
}

// A Python int; nothing for what is none or does not fit.
std::optional<int64_t> ExactInt(nb::handle number) {
  if (!PyLong_CheckExact(number.ptr())) {
    return std::nullopt;
  }
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  return overflow == 0 ? std::optional(value) : std::nullopt;
}

// Whether `k` of the axis `dim` of x is what this file can answer: the last axis, contiguous.
bool Answers(const Array& x, std::optional<int64_t> k, std::optional<int64_t> dim) {
  if (x.framework() != Framework::kTorch || !IsFloating(x.element()) || x.ndim() == 0 || !k ||
      !dim || (*dim != -1 && *dim != x.ndim() - 1)) {
    return false;
  }
  const Axis& last = x.axis(-1);
  return *k >= 1 && *k <= last.size && last.size <= std::numeric_limits<int32_t>::max() &&
         (last.stride == 1 || last.size == 1);
}

// (values, indices) of torch.topk over the last axis; None for what has to go another way: another
// axis or dtype, no plain memory, or an error that PyTorch has a text for.
nb::object PyTorchTopK(nb::handle input, nb::handle k_object, nb::handle dim, bool largest,
                       bool sorted) {
  const std::optional<int64_t> k = ExactInt(k_object);
  std::optional<Array> array;
  try {
    array.emplace(input, "input");
  } catch (const nb::builtin_exception&) {
    return nb::none();
  } catch (const nb::python_error&) {
    return nb::none();
  }
  const Array& x = *array;
  if (!Answers(x, k, ExactInt(dim))) {
    return nb::none();
  }
  const Rows rows(x);
  int64_t shape[kMaxAxes];
  for (int i = 0; i < x.ndim(); ++i) {
    shape[i] = x.axis(i).size;
  }
  shape[x.ndim() - 1] = *k;
  const std::span<const int64_t> out_shape(shape, static_cast<size_t>(x.ndim()));
  NewArray values = NewArrayLike(x, x.element(), out_shape);
  NewArray indices = NewArrayLike(x, Element::kI64, out_shape);
  {
    const KernelScope scope;
    TopKOptions options;
    options.largest = largest;
    options.sorted = sorted;
    for (int64_t block = 0; block < rows.blocks(); ++block) {
      const int64_t first = block * rows.block_rows() * *k;
      TopKOut out;
      out.values = static_cast<uint8_t*>(values.data) + first * SizeOf(x.element());
      out.wide_indices = static_cast<int64_t*>(indices.data) + first;
      out.values_stride = out.indices_stride = *k;
      TopK({rows.Block(block), FloatingDType(x), rows.block_rows(), rows.cols(), rows.stride()}, *k,
           out, options);
    }
  }
  return nb::make_tuple(Finished(x, std::move(values)), Finished(x, std::move(indices)));
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
  const DType dtype = FloatingDType(logits);
  if (num_rows < 0 || logits.axis(0).size < num_rows) {
    ThrowValueError("num_rows = " + std::to_string(num_rows) + " but logits has " +
                    std::to_string(logits.axis(0).size) + " rows");
  }
  return {logits.data(), dtype, num_rows, logits.axis(1).size, logits.axis(0).stride};
}

// The k best of the columns [starts[r], ends[r]) that there are.
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
  m.def("torch_topk", &PyTorchTopK, any, any, any, nb::arg(), nb::arg());
  m.def("torch_top_k_per_row_prefill", &PyTorchTopKPerRowPrefill, any, any, any, any, any, any);
  m.def("torch_top_k_per_row_decode", &PyTorchTopKPerRowDecode, any, any, any, any, any, any);
}

}  // namespace riffle::python
