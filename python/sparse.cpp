// Sparse attention: Python's arguments to riffle/indexer.h and riffle/sparse_attention.h and back.
#include <algorithm>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "riffle/indexer.h"
#include "riffle/sparse_attention.h"

namespace riffle::python {
namespace {

[[noreturn]] void ThrowNoneOf(const char* name, nb::handle value, const char* names) {
  ThrowValueError(std::string(name) + " = " + Repr(value) + " is none of " + names);
}

// The position of a text in a list; what is not in it is a ValueError.
template <size_t kCount>
int OneOf(nb::handle value, const char* name, const std::string_view (&names)[kCount],
          const char* all) {
  std::string_view text;
  if (nb::try_cast(value, text)) {
    for (size_t i = 0; i < kCount; ++i) {
      if (text == names[i]) {
        return static_cast<int>(i);
      }
    }
  }
  ThrowNoneOf(name, value, all);
}

// Codes of e4m3 come as uint8, with `e4m3` set.
DType IndexDType(const Array& x, bool e4m3) {
  if (e4m3) {
    CheckElement(x, Element::kU8);
    return DType::kE4M3;
  }
  return x.element() == Element::kI8 ? DType::kI8 : FloatingDType(x);
}

HeadsView IndexQueries(const Array& q, bool e4m3) {
  CheckAxes(q, 3, "[tokens, heads, head_dim]");
  CheckLastAxisContiguous(q);
  return {q.data(),       IndexDType(q, e4m3), q.axis(0).size,  q.axis(1).size,
          q.axis(2).size, q.axis(0).stride,    q.axis(1).stride};
}

// A matrix argument that may be None, its last axis contiguous.
class OptionalMatrix {
 public:
  OptionalMatrix(nb::handle object, const char* name, Element element, const char* form) {
    if (object.is_none()) {
      return;
    }
    const Array& x = array_.emplace(object, name);
    CheckElement(x, element);
    CheckAxes(x, 2, form);
    CheckLastAxisContiguous(x);
    if (reinterpret_cast<uintptr_t>(x.data()) % static_cast<uintptr_t>(SizeOf(element)) != 0) {
      ThrowValueError(std::string(name) + " is not aligned to its elements");
    }
  }

  explicit operator bool() const { return array_.has_value(); }
  const Array& array() const { return *array_; }
  int64_t rows() const { return array_->axis(0).size; }
  int64_t cols() const { return array_->axis(1).size; }
  int64_t stride() const { return array_->axis(0).stride; }
  template <typename T>
  const T* data() const {
    return array_ ? static_cast<const T*>(array_->data()) : nullptr;
  }
  void CheckRows(int64_t rows, const char* what) const {
    if (array_ && this->rows() != rows) {
      ThrowValueError(std::string(array_->name()) + " has shape " + array_->Shape() + " but " +
                      what + " has " + std::to_string(rows));
    }
  }

 private:
  std::optional<Array> array_;
};

class Weights {
 public:
  Weights(nb::handle object, const HeadsView& q)
      : matrix_(object, "weights", Element::kF32, "[tokens, heads]") {
    if (matrix_) {
      const int64_t shape[] = {q.tokens, q.heads};
      CheckShape(matrix_.array(), shape);
    }
  }
  IndexWeights view() const { return {matrix_.data<float>(), matrix_ ? matrix_.stride() : 0}; }

 private:
  OptionalMatrix matrix_;
};

// The lengths and pages of a call.
class Batch {
 public:
  Batch(nb::handle kv_lens, nb::handle page_table, nb::handle cu_q_lens)
      : kv_lens_(kv_lens, "kv_lens"),
        table_(page_table, "page_table", Element::kI32, "[sequences, max_pages]") {
    if (!table_) {
      ThrowTypeError("page_table must be an array, not None");
    }
    view_.kv_lens = kv_lens_.get();
    table_.CheckRows(static_cast<int64_t>(view_.kv_lens.size()), "kv_lens");
    view_.page_table = table_.data<int32_t>();
    view_.max_pages = table_.cols();
    view_.page_table_stride = table_.stride();
    if (!cu_q_lens.is_none()) {
      view_.cu_q_lens = cu_q_lens_.emplace(cu_q_lens, "cu_q_lens").get();
      if (view_.cu_q_lens.empty()) {
        ThrowValueError("cu_q_lens is empty; it must have one element more than kv_lens");
      }
    }
  }
  const PagedBatch& view() const { return view_; }

 private:
  Int32Span kv_lens_;
  OptionalMatrix table_;
  std::optional<Int32Span> cu_q_lens_;
  PagedBatch view_;
};

// A pool of index keys, to be read or written: IndexKeys or IndexKeysOut.
template <typename Keys>
class KeyPool {
 public:
  KeyPool(nb::handle object, nb::handle scales, nb::handle format, int64_t head_dim,
          const char* name, const char* scales_name, Access access)
      : array_(object, name, access) {
    constexpr std::string_view kFormats[] = {"plain", "deepgemm", "e4m3"};
    const int kind = format.is_none() ? 0
                                      : OneOf(format, "key_format", kFormats,
                                              "None, 'plain', 'deepgemm', 'e4m3'");
    keys_.data = array_.data();
    keys_.head_dim = head_dim;
    keys_.num_pages = array_.ndim() > 0 ? array_.axis(0).size : 0;
    if (kind == 1) {
      SetDeepGemm(head_dim);
      return;
    }
    CheckAxes(array_, 3, "[pages, page_size, head_dim]");
    CheckLastAxisContiguous(array_);
    keys_.dtype = IndexDType(array_, kind == 2);
    keys_.page_size = array_.axis(1).size;
    keys_.head_dim = array_.axis(2).size;
    keys_.page_stride = array_.axis(0).stride;
    keys_.token_stride = array_.axis(1).stride;
    if (!scales.is_none()) {
      SetScales(scales, scales_name, access);
    }
  }

  const Keys& view() const { return keys_; }

 private:
  void SetDeepGemm(int64_t head_dim) {
    CheckElement(array_, Element::kU8);
    CheckAxes(array_, 2, "[pages, page_size * (head_dim + 4)]");
    CheckLastAxisContiguous(array_);
    if (array_.axis(1).size % (head_dim + 4) != 0) {
      ThrowValueError(std::string(array_.name()) + " has shape " + array_.Shape() +
                      "; a page is a multiple of head_dim + 4 = " + std::to_string(head_dim + 4) +
                      " bytes");
    }
    keys_.dtype = DType::kU8;
    keys_.format = IndexKeyFormat::kDeepGemm;
    keys_.page_size = array_.axis(1).size / (head_dim + 4);
    keys_.page_stride = array_.axis(0).stride;
  }

  // Broadcast to [pages, page_size] as NumPy broadcasts.
  void SetScales(nb::handle object, const char* name, Access access) {
    const Array& scales = scales_.emplace(object, name, access);
    CheckElement(scales, Element::kF32);
    const int64_t want[] = {keys_.num_pages, keys_.page_size};
    int64_t stride[2] = {0, 0};
    const int skipped = 2 - scales.ndim();
    for (int axis = std::max(skipped, 0); axis < 2 && skipped >= 0; ++axis) {
      const Axis& own = scales.axis(axis - skipped);
      stride[axis] = own.size == 1 && access == Access::kRead ? 0 : own.stride;
      if (own.size != want[axis] && (own.size != 1 || access == Access::kWrite)) {
        stride[0] = -1;
        break;
      }
    }
    if (skipped < 0 || stride[0] == -1 || (access == Access::kWrite && skipped != 0)) {
      ThrowValueError(std::string(name) + " has shape " + scales.Shape() + "; it must " +
                      (access == Access::kWrite ? "be " : "broadcast to ") + ShapeText(want));
    }
    keys_.scales.data = static_cast<decltype(keys_.scales.data)>(scales.data());
    keys_.scales.page_stride = stride[0];
    keys_.scales.token_stride = stride[1];
  }

  Array array_;
  std::optional<Array> scales_;
  Keys keys_;
};

// An output [tokens, cols] like q: the caller's or a new one.
class OutMatrix {
 public:
  OutMatrix(const Array& like, nb::handle given, Element element, int64_t rows, int64_t cols)
      : like_(like) {
    const int64_t shape[] = {rows, cols};
    if (given.is_none()) {
      fresh_ = NewArrayLike(like, element, shape);
      data_ = fresh_.data;
      stride_ = cols;
      return;
    }
    const Array& out = given_.emplace(given, "out", Access::kWrite);
    CheckElement(out, element);
    CheckShape(out, shape);
    CheckLastAxisContiguous(out);
    data_ = out.data();
    stride_ = rows > 1 ? out.axis(0).stride : cols;
  }
  void* data() const { return data_; }
  int64_t stride() const { return stride_; }
  nb::object Finish() {
    return given_ ? nb::borrow(given_->object()) : Finished(like_, std::move(fresh_));
  }

 private:
  const Array& like_;
  std::optional<Array> given_;
  NewArray fresh_;
  void* data_ = nullptr;
  int64_t stride_ = 0;
};

IndexActivation ActivationOf(nb::handle name) {
  constexpr std::string_view kNames[] = {"relu", "none"};
  return static_cast<IndexActivation>(OneOf(name, "activation", kNames, "'relu', 'none'"));
}

nb::object PyIndexerLogits(nb::handle q_object, bool q_e4m3, nb::handle weights_object,
                           nb::handle keys_object, nb::handle kv_lens, nb::handle page_table,
                           nb::handle cu_q_lens, nb::handle key_scales, nb::handle key_format,
                           nb::handle ratio, nb::handle activation, nb::handle out_object) {
  const Array q(q_object, "q");
  const HeadsView view = IndexQueries(q, q_e4m3);
  const Weights weights(weights_object, view);
  const KeyPool<IndexKeys> keys(keys_object, key_scales, key_format, view.head_dim, "keys",
                                "key_scales", Access::kRead);
  const Batch batch(kv_lens, page_table, cu_q_lens);
  IndexerOptions options;
  options.ratio = Int64(ratio, "ratio");
  options.activation = ActivationOf(activation);
  // No more than there are pages for: a length beyond them is refused by the call.
  const int64_t cols = std::clamp<int64_t>(MaxIndexKeys(batch.view(), options.ratio), 0,
                                           batch.view().max_pages * keys.view().page_size);
  OutMatrix out(q, out_object, Element::kF32, view.tokens, cols);
  {
    const KernelScope scope;
    IndexerLogits(view, weights.view(), keys.view(), batch.view(),
                  {static_cast<float*>(out.data()), cols, out.stride()}, options);
  }
  return out.Finish();
}

// Over a matrix of keys [n, head_dim], columns [starts, ends) of each query.
nb::object PyIndexerRangeLogits(nb::handle q_object, bool q_e4m3, nb::handle weights_object,
                                nb::handle keys_object, bool key_e4m3, nb::handle scales_object,
                                nb::handle starts_object, nb::handle ends_object) {
  const Array q(q_object, "q");
  const HeadsView view = IndexQueries(q, q_e4m3);
  const Weights weights(weights_object, view);
  const Array matrix(keys_object, "keys");
  CheckAxes(matrix, 2, "[n, head_dim]");
  CheckLastAxisContiguous(matrix);
  const int64_t n = matrix.axis(0).size;
  IndexKeys keys{matrix.data(),           IndexDType(matrix, key_e4m3), 1,
                 std::max<int64_t>(n, 1), matrix.axis(1).size,          0,
                 matrix.axis(0).stride};
  std::optional<Array> scales;
  if (!scales_object.is_none()) {
    const Array& of = scales.emplace(scales_object, "key_scales");
    CheckElement(of, Element::kF32);
    CheckAxes(of, 1, "[n]");
    if (of.axis(0).size != n) {
      ThrowValueError("key_scales has shape " + of.Shape() + " but keys has " + std::to_string(n) +
                      " rows");
    }
    keys.scales = {static_cast<const float*>(of.data()), 0, of.axis(0).stride};
  }
  const Int32Span starts(starts_object, "starts");
  const Int32Span ends(ends_object, "ends");
  OutMatrix out(q, nb::none(), Element::kF32, view.tokens, n);
  if (n > 0) {
    const KernelScope scope;
    IndexerLogits(view, weights.view(), keys, starts.get(), ends.get(),
                  {static_cast<float*>(out.data()), n, out.stride()});
  }
  return out.Finish();
}

nb::object PyIndexerTopK(nb::handle q_object, bool q_e4m3, nb::handle weights_object,
                         nb::handle keys_object, nb::handle kv_lens, nb::handle page_table,
                         nb::handle k_object, nb::handle cu_q_lens, nb::handle key_scales,
                         nb::handle key_format, nb::handle ratio, nb::handle activation,
                         nb::handle block, nb::handle reduce, nb::handle first_blocks,
                         nb::handle local_blocks, nb::handle incomplete_tail,
                         nb::handle candidates_object, nb::handle candidate_span, nb::handle slots,
                         nb::handle out_object) {
  const Array q(q_object, "q");
  const HeadsView view = IndexQueries(q, q_e4m3);
  const Weights weights(weights_object, view);
  const KeyPool<IndexKeys> keys(keys_object, key_scales, key_format, view.head_dim, "keys",
                                "key_scales", Access::kRead);
  const Batch batch(kv_lens, page_table, cu_q_lens);
  const int64_t k = Int64(k_object, "k");
  constexpr std::string_view kReduce[] = {"max", "mean"};
  IndexTopKOptions options;
  options.ratio = Int64(ratio, "ratio");
  options.activation = ActivationOf(activation);
  options.block = Int64(block, "block");
  options.block_score = static_cast<BlockScore>(OneOf(reduce, "reduce", kReduce, "'max', 'mean'"));
  options.first_blocks = Int64(first_blocks, "first_blocks");
  options.local_blocks = Int64(local_blocks, "local_blocks");
  options.incomplete_tail = Bool(incomplete_tail, "incomplete_tail");
  options.slots = Bool(slots, "slots");
  const OptionalMatrix candidates(candidates_object, "candidates", Element::kI32,
                                  "[tokens, candidates]");
  if (candidates) {
    candidates.CheckRows(view.tokens, "q");
    options.candidates = candidates.data<int32_t>();
    options.candidate_cols = candidates.cols();
    options.candidate_stride = candidates.stride();
  }
  options.candidate_span = Int64(candidate_span, "candidate_span");
  // The entry point's own check of k, before anything is allocated by it.
  PagedBatch nothing;
  HeadsView no_tokens = view;
  no_tokens.tokens = 0;
  IndexerTopK(no_tokens, {}, keys.view(), nothing, k, {}, options);
  OutMatrix out(q, out_object, Element::kI32, view.tokens, k);
  {
    const KernelScope scope;
    IndexerTopK(view, weights.view(), keys.view(), batch.view(), k,
                {static_cast<int32_t*>(out.data()), out.stride()}, options);
  }
  return out.Finish();
}

void PyWriteIndexKeys(nb::handle x_object, nb::handle slots_object, nb::handle pages_object,
                      nb::handle scales, nb::handle format, nb::handle hadamard) {
  const Array x(x_object, "keys");
  CheckAxes(x, 2, "[tokens, head_dim]");
  CheckLastAxisContiguous(x);
  const MatrixView view{x.data(), FloatingDType(x), x.axis(0).size, x.axis(1).size,
                        x.axis(0).stride};
  const Int32Span slots(slots_object, "slots");
  const KeyPool<IndexKeysOut> pages(pages_object, scales, format, view.cols, "pages", "scales",
                                    Access::kWrite);
  WriteIndexKeysOptions options;
  options.hadamard = Bool(hadamard, "hadamard");
  const KernelScope scope;
  WriteIndexKeys(view, slots.get(), pages.view(), options);
}

nb::object PyHadamard(nb::handle object) {
  const Array x(object, "x");
  CheckAxes(x, 2, "[rows, n]");
  CheckLastAxisContiguous(x);
  const MatrixView view{x.data(), FloatingDType(x), x.axis(0).size, x.axis(1).size,
                        x.axis(0).stride};
  OutMatrix out(x, nb::none(), x.element(), view.rows, view.cols);
  {
    const KernelScope scope;
    Hadamard(view, {out.data(), out.stride()});
  }
  return out.Finish();
}

nb::object PyPositionsToSlots(nb::handle positions_object, nb::handle table_object,
                              nb::handle page_size, nb::handle cu_q_lens_object) {
  const Array positions(positions_object, "positions");
  CheckElement(positions, Element::kI32);
  CheckAxes(positions, 2, "[tokens, n]");
  CheckLastAxisContiguous(positions);
  const OptionalMatrix table(table_object, "page_table", Element::kI32, "[sequences, max_pages]");
  if (!table) {
    ThrowTypeError("page_table must be an array, not None");
  }
  std::optional<Int32Span> cu_q_lens;
  IndexSpan cu;
  if (!cu_q_lens_object.is_none()) {
    cu = cu_q_lens.emplace(cu_q_lens_object, "cu_q_lens").get();
  }
  const PositionsView view{static_cast<const int32_t*>(positions.data()), positions.axis(0).size,
                           positions.axis(1).size, positions.axis(0).stride};
  const PageTableView pages{table.data<int32_t>(), table.rows(), table.cols(), table.stride(),
                            Int64(page_size, "page_size")};
  OutMatrix out(positions, nb::none(), Element::kI32, view.tokens, view.cols);
  {
    const KernelScope scope;
    PositionsToSlots(view, pages, cu, {static_cast<int32_t*>(out.data()), out.stride()});
  }
  return out.Finish();
}

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

void BindSparse(nb::module_& m) {
  const auto any = nb::arg().none();  // what None means is for the functions to say
  m.def("indexer_logits", &PyIndexerLogits, any, any, any, any, any, any, any, any, any, any, any,
        any);
  m.def("indexer_range_logits", &PyIndexerRangeLogits, any, any, any, any, any, any, any, any);
  m.def("indexer_top_k", &PyIndexerTopK, any, any, any, any, any, any, any, any, any, any, any, any,
        any, any, any, any, any, any, any, any, any);
  m.def("write_index_keys", &PyWriteIndexKeys, any, any, any, any, any, any);
  m.def("hadamard", &PyHadamard, any);
  m.def("positions_to_slots", &PyPositionsToSlots, any, any, any, any);
  m.def("sparse_attention", &PySparseAttention, any, any, any, any, any, any, any, any, any);
}

}  // namespace riffle::python
