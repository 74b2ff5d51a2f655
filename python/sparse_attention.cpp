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

constexpr std::string_view kRowFormats[] = {"plain",       "mla656", "mla584", "float8_e4m3fn",
                                            "float8_e5m2", "q8_0",   "q4_0",   "q4_1",
                                            "q5_0",        "q5_1",   "iq4_nl"};
constexpr const char* kRowFormatNames =
    "'plain', 'mla656', 'mla584', 'float8_e4m3fn', 'float8_e5m2', 'q8_0', 'q4_0', 'q4_1', 'q5_0', "
    "'q5_1', 'iq4_nl'";

// Sets the memory of rows in coded formats, [slots, 656] or [pages, page_size, 656 or 584].
void SetCodedRows(const Array& x, SparseRowFormat kind, SparseRows* rows) {
  const int axes = x.ndim();
  CheckElement(x, Element::kU8);
  rows->format = kind;
  rows->dtype = DType::kU8;
  const bool v4 = kind == SparseRowFormat::kMla584;
  rows->row_dim = v4 ? 512 : 576;
  const int64_t bytes = v4 ? 584 : 656;
  if (x.axis(-1).size != bytes || (v4 && (axes != 3 || x.axis(1).stride != bytes))) {
    ThrowValueError(std::string(x.name()) + " has shape " + x.Shape() + "; of " + Name(kind) +
                    (v4 ? " it is [pages, page_size, 584], each page contiguous"
                        : " the last axis is 656 bytes"));
  }
}

// Sets all members of a pool of rows, [slots, d] or [pages, page_size, d], except the dtype.
void SetPool(const Array& x, SparseRows* rows) {
  rows->data = x.data();
  rows->row_stride = x.axis(-2).stride;
  rows->slots = x.axis(-2).size;
  if (x.ndim() == 3) {
    rows->page_size = std::max<int64_t>(x.axis(1).size, 1);
    rows->page_stride = x.axis(0).stride;
    rows->slots *= x.axis(0).size;
  }
}

void CheckRowsForm(const Array& x) {
  if (x.ndim() != 2 && x.ndim() != 3) {
    CheckAxes(x, 2, "[slots, d] or [pages, page_size, d]");
  }
  CheckLastAxisContiguous(x);
}

// One scope: (rows, slots, lengths, row_format, row_scales).
class Scope {
 public:
  Scope(nb::handle rows, nb::handle slots, nb::handle lengths, nb::handle format, nb::handle scales,
        int64_t tokens)
      : rows_(rows, "rows"), slots_(slots, "slots", Element::kI32, "[tokens, n]") {
    const int kind = OneOf(format, "row_format", kRowFormats, kRowFormatNames);
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
    SetScales(scales);
  }
  const SparseScope& view() const { return view_; }

 private:
  void SetRows(int kind) {
    SparseRows& rows = view_.rows;
    CheckRowsForm(rows_);
    SetPool(rows_, &rows);
    const int64_t last = rows_.axis(-1).size;
    const std::string_view name = kRowFormats[kind];
    if (kind == 1 || kind == 2) {
      SetCodedRows(rows_, static_cast<SparseRowFormat>(kind), &rows);
    } else if (name == "plain") {
      rows.dtype = DTypeAmong(
          rows_, {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE5M2, DType::kI8},
          "float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 and int8 (with a format: uint8)");
      rows.row_dim = last;
    } else {
      CheckElement(rows_, Element::kU8);
      rows.row_dim = last;
      rows.dtype = name == Name(DType::kE4M3)   ? DType::kE4M3
                   : name == Name(DType::kE5M2) ? DType::kE5M2
                                                : DType::kU8;
      for (int i = 1; i < kNumKvFormats; ++i) {
        if (name == Name(static_cast<KvFormat>(i))) {
          rows.blocks = static_cast<KvFormat>(i);
          rows.row_dim = last / BlockBytes(rows.blocks) * 32;
        }
      }
      if (rows.blocks != KvFormat::kPlain && last % BlockBytes(rows.blocks) != 0) {
        ThrowValueError(std::string("rows has shape ") + rows_.Shape() + ": rows of " +
                        std::to_string(last) + " bytes are no whole blocks of " +
                        Name(rows.blocks) + ", " + std::to_string(BlockBytes(rows.blocks)) +
                        " bytes each");
      }
    }
  }

  // None, a number, or an array that broadcasts to rows.shape[:-1] or has one more axis, of groups.
  void SetScales(nb::handle object) {
    if (object.is_none()) {
      return;
    }
    SparseRows& rows = view_.rows;
    if (rows.dtype != DType::kE4M3 && rows.dtype != DType::kE5M2 && rows.dtype != DType::kI8) {
      ThrowTypeError(std::string("rows has dtype ") + rows_.DTypeName() +
                     "; with row_scales it must be int8, float8_e4m3fn or float8_e5m2");
    }
    if (!IsArray(object)) {
      number_ = static_cast<float>(Double(object, "row_scales", "a number, an array or None"));
      rows.scales.data = &number_;
      return;
    }
    const Array& x = scales_.emplace(object, "row_scales");
    const int axes = rows_.ndim();
    const bool grouped = x.ndim() == axes;
    bool fits = x.ndim() <= axes;
    int64_t strides[2] = {0, 0};  // of pages and of tokens
    for (int axis = 0; fits && axis < axes - 1; ++axis) {
      const int own = axis - (axes - 1) + x.ndim() - (grouped ? 1 : 0);
      if (own >= 0 && x.axis(own).size != 1) {
        fits = x.axis(own).size == rows_.axis(axis).size;
        strides[axis + 3 - axes] = x.axis(own).stride;
      }
    }
    if (fits && grouped && x.axis(-1).size != 1) {
      const int64_t groups = x.axis(-1).size;
      const int64_t group = groups > 0 ? rows.row_dim / groups : 0;
      fits = group * groups == rows.row_dim && (group == 32 || group == 64 || group == 128);
      rows.scales.group = group;
      rows.scales.group_stride = x.axis(-1).stride;
    }
    if (!fits) {
      ThrowValueError(std::string("row_scales has shape ") + x.Shape() +
                      "; it must broadcast to that of rows, " + rows_.Shape() +
                      ", without its last axis, or have one more axis: a scale for each 32, 64 or "
                      "128 elements");
    }
    rows.scales.data = x.data();
    rows.scales.dtype = DTypeAmong(x, {DType::kF32, DType::kF16, DType::kBF16, DType::kE8M0},
                                   "float32, float16, bfloat16 and float8_e8m0fnu");
    rows.scales.page_stride = strides[0];
    rows.scales.token_stride = strides[1];
  }

  Array rows_;
  OptionalMatrix slots_;
  std::optional<Int32Span> lengths_;
  std::optional<Array> scales_;
  float number_ = 0;
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
    scopes.emplace_back(scope[0], scope[1], scope[2], scope[3], scope[4], view.tokens);
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

void PyWriteSparseRows(nb::handle x_object, nb::handle slots_object, nb::handle rows_object,
                       nb::handle format, nb::handle power_of_two) {
  constexpr std::string_view kFormats[] = {"mla656", "mla584"};
  const Array x(x_object, "x");
  CheckAxes(x, 2, "[tokens, d]");
  CheckLastAxisContiguous(x);
  const MatrixView view{x.data(), FloatingDType(x), x.axis(0).size, x.axis(1).size,
                        x.axis(0).stride};
  const Indices slots(slots_object, "slots", 1, "1-dimensional");
  const auto kind =
      static_cast<SparseRowFormat>(1 + OneOf(format, "row_format", kFormats, "'mla656', 'mla584'"));
  const Array rows(rows_object, "rows", Access::kWrite);
  CheckRowsForm(rows);
  SparseRows pool;
  SetPool(rows, &pool);
  SetCodedRows(rows, kind, &pool);
  WriteSparseRowsOptions options;
  options.power_of_two_scales = Bool(power_of_two, "power_of_two_scales");
  const KernelScope scope;
  WriteSparseRows(
      view, slots.get(),
      {rows.data(), pool.slots, pool.row_stride, pool.page_size, pool.page_stride, pool.format},
      options);
}

}  // namespace

void BindSparseAttention(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("sparse_attention", &PySparseAttention, any, any, any, any, any, any, any, any, any);
  m.def("write_sparse_rows", &PyWriteSparseRows, any, any, any, any, any);
}

}  // namespace riffle::python
