// Sparse attention: Python's arguments to riffle/sparse_attention.h and back.
#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bindings.h"
#include "kernel_scope.h"
#include "riffle/sparse_attention.h"
#include "sparse_arguments.h"

namespace riffle::python {
namespace {

// One scope: (rows, slots, lengths, row_format).
class Scope {
 public:
  Scope(nb::handle rows, nb::handle slots, nb::handle lengths, nb::handle format, int64_t tokens)
      : rows_(rows, "rows"), slots_(slots, "slots", Element::kI32, "[tokens, n]") {
    constexpr std::string_view kFormats[] = {"plain", "mla656", "mla584"};
    const auto kind = static_cast<SparseRowFormat>(
        OneOf(format, "row_format", kFormats, "'plain', 'mla656', 'mla584'"));
    if (!slots_) {
      ThrowTypeError("slots must be an array, not None");
    }
    slots_.CheckRows(tokens, "q");
    view_.slots = slots_.data<int32_t>();
    view_.cols = slots_.cols();
    view_.slots_stride = slots_.stride();
    if (!lengths.is_none()) {
      const std::span<const int32_t> values = lengths_.emplace(lengths, "lengths").get();
      if (static_cast<int64_t>(values.size()) != tokens) {
        ThrowValueError("lengths has " + std::to_string(values.size()) + " elements for " +
                        std::to_string(tokens) + " tokens");
      }
      view_.lengths = values.data();
    }
    SetRows(kind);
  }
  const SparseScope& view() const { return view_; }

 private:
  void SetRows(SparseRowFormat kind) {
    SparseRows& rows = view_.rows;
    rows.format = kind;
    rows.data = rows_.data();
    const int axes = rows_.ndim();
    if (axes != 2 && axes != 3) {
      CheckAxes(rows_, 2, "[slots, d] or [pages, page_size, d]");
    }
    CheckLastAxisContiguous(rows_);
    if (kind == SparseRowFormat::kPlain) {
      rows.dtype = FloatingDType(rows_);
      rows.row_dim = rows_.axis(-1).size;
    } else {
      CheckElement(rows_, Element::kU8);
      rows.dtype = DType::kU8;
      const bool v4 = kind == SparseRowFormat::kMla584;
      rows.row_dim = v4 ? 512 : 576;
      const int64_t bytes = v4 ? 584 : 656;
      if (rows_.axis(-1).size != bytes || (v4 && (axes != 3 || rows_.axis(1).stride != bytes))) {
        ThrowValueError(std::string("rows has shape ") + rows_.Shape() + "; of " + Name(kind) +
                        (v4 ? " it is [pages, page_size, 584], each page contiguous"
                            : " the last axis is 656 bytes"));
      }
    }
    rows.row_stride = rows_.axis(-2).stride;
    rows.slots = rows_.axis(-2).size;
    if (axes == 3) {
      rows.page_size = std::max<int64_t>(rows_.axis(1).size, 1);
      rows.page_stride = rows_.axis(0).stride;
      rows.slots *= rows_.axis(0).size;
    }
  }

  Array rows_;
  OptionalMatrix slots_;
  std::optional<Int32Span> lengths_;
  SparseScope view_;
};

std::vector<float> SinkLogits(nb::handle object) {
  const Array x(object, "sinks");
  const DType dtype = FloatingDType(x);
  CheckAxes(x, 1, "1-dimensional");
  std::vector<float> floats;
  for (int64_t i = 0; i < x.axis(0).size; ++i) {
    floats.push_back(FloatAt(static_cast<const uint8_t*>(x.data()) +
                                 i * x.axis(0).stride * static_cast<int64_t>(SizeOf(dtype)),
                             dtype));
  }
  return floats;
}

nb::object PySparseAttention(nb::handle q_object, nb::handle scopes_object, nb::handle value_dim,
                             nb::handle scale, nb::handle sinks, nb::handle lse_with_sinks,
                             nb::handle ignore_invalid, nb::handle out_object,
                             nb::handle return_lse_object) {
  const Array q(q_object, "q");
  CheckAxes(q, 3, "[tokens, q_heads, d]");
  CheckLastAxisContiguous(q);
  const HeadsView view{q.data(),       FloatingDType(q), q.axis(0).size,  q.axis(1).size,
                       q.axis(2).size, q.axis(0).stride, q.axis(1).stride};
  std::deque<Scope> scopes;
  std::vector<SparseScope> views;
  for (const nb::handle scope : scopes_object) {
    scopes.emplace_back(scope[0], scope[1], scope[2], scope[3], view.tokens);
    views.push_back(scopes.back().view());
  }
  SparseAttentionOptions options;
  options.value_dim = value_dim.is_none() ? 0 : Int64(value_dim, "value_dim");
  if (!scale.is_none()) {
    options.scale = static_cast<float>(Double(scale, "scale", "a number or None"));
  }
  std::vector<float> logits;
  if (!sinks.is_none()) {
    logits = SinkLogits(sinks);
    if (logits.empty()) {
      ThrowValueError("sinks is empty; it must have one element per query head");
    }
    options.sinks = logits;
  }
  options.lse_with_sinks = Bool(lse_with_sinks, "lse_with_sinks");
  options.ignore_invalid = Bool(ignore_invalid, "ignore_invalid");
  const bool return_lse = Bool(return_lse_object, "return_lse");
  const int64_t dim = options.value_dim > 0 ? options.value_dim : view.head_dim;
  if (dim > view.head_dim) {
    ThrowValueError("value_dim = " + std::to_string(dim) + " is more than the " +
                    std::to_string(view.head_dim) + " elements of a row");
  }
  const int64_t shape[] = {view.tokens, view.heads, dim};
  NewArray fresh;
  NewArray lse;
  std::optional<Array> given;
  AttentionOut to;
  if (out_object.is_none()) {
    fresh = NewArrayLike(q, q.element(), shape);
    to = {fresh.data, view.heads * dim, dim, nullptr, 0};
  } else {
    const Array& out = given.emplace(out_object, "out", Access::kWrite);
    CheckElement(out, q.element());
    CheckShape(out, shape);
    CheckLastAxisContiguous(out);
    to = {out.data(), out.axis(0).stride, out.axis(1).stride, nullptr, 0};
  }
  if (return_lse) {
    lse = NewArrayLike(q, Element::kF32, std::span(shape).first(2));
    to.lse = static_cast<float*>(lse.data);
    to.lse_token_stride = view.heads;
  }
  {
    const KernelScope scope;
    SparseAttention(view, views, to, options);
  }
  nb::object out = given ? nb::borrow(given->object()) : Finished(q, std::move(fresh));
  return return_lse ? nb::make_tuple(std::move(out), Finished(q, std::move(lse))) : out;
}

}  // namespace

void BindSparseAttention(nb::module_& m) {
  const auto any = nb::arg().none();  // what None means is for the functions to say
  m.def("sparse_attention", &PySparseAttention, any, any, any, any, any, any, any, any, any);
}

}  // namespace riffle::python
