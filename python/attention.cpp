// Paged attention: Python's arguments to riffle/attention.h and back.
#include "riffle/attention.h"

#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "kv_arguments.h"

namespace riffle::python {
namespace {

constexpr const char* kQueryForm = "[tokens, heads, head_dim]";

// The lse of a part, [tokens, heads]; rows are contiguous, or are copied so that they are.
class Lse {
 public:
  Lse(nb::handle object, const char* name) : array_(object, name) {
    CheckElement(array_, Element::kF32);
    CheckAxes(array_, 2, "[tokens, heads]");
    const auto [rows, row_stride] = array_.axis(0);
    const auto [cols, col_stride] = array_.axis(1);
    const auto* bytes = static_cast<const uint8_t*>(array_.data());
    stride_ = row_stride;
    data_ = static_cast<const float*>(array_.data());
    // Copies if elements are strided, or at an address that is not aligned for float.
    if ((cols > 1 && col_stride != 1) || reinterpret_cast<uintptr_t>(bytes) % alignof(float) != 0) {
      copy_.resize(static_cast<size_t>(rows * cols));
      float* to = copy_.data();
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c, ++to) {
          std::memcpy(to, bytes + (r * row_stride + c * col_stride) * int64_t{sizeof(float)},
                      sizeof(float));
        }
      }
      stride_ = cols;
      data_ = copy_.data();
    }
  }

  int64_t stride() const { return stride_; }
  const float* data() const { return data_; }
  const Array& array() const { return array_; }

 private:
  Array array_;
  std::vector<float> copy_;
  int64_t stride_;
  const float* data_;
};

// The floats of a 1-dimensional float32, float16 or bfloat16 array.
std::vector<float> Floats(nb::handle object, const char* name) {
  const Array x(object, name);
  const DType dtype = FloatingDType(x);
  CheckAxes(x, 1, "1-dimensional");
  std::vector<float> floats;
  for (int64_t i = 0; i < x.axis(0).size; ++i) {
    const auto size = static_cast<int64_t>(SizeOf(dtype));
    floats.push_back(
        FloatAt(static_cast<const uint8_t*>(x.data()) + i * x.axis(0).stride * size, dtype));
  }
  return floats;
}

// A mask [tokens or 1, q_heads or 1, kv]: numbers to add to logits, or bools, false where a key is
// hidden.
class MaskArgument {
 public:
  explicit MaskArgument(nb::handle object) : array_(object, "mask") {
    CheckAxes(array_, 3, "[tokens or 1, q_heads or 1, kv]");
    // A null pointer would mean no mask, but an array without elements may have a null address.
    static const uint8_t kNoElement = 0;
    view_.data = array_.data() != nullptr ? array_.data() : &kNoElement;
    view_.dtype = MaskDType(array_);
    view_.tokens = array_.axis(0).size;
    view_.heads = array_.axis(1).size;
    view_.keys = array_.axis(2).size;
    view_.token_stride = array_.axis(0).stride;
    view_.head_stride = array_.axis(1).stride;
    view_.key_stride = array_.axis(2).stride;
  }

  const AttentionMask& view() const { return view_; }

 private:
  Array array_;
  AttentionMask view_;
};

// `causal`: a bool, or an array with a bool for each sequence.
class Causality {
 public:
  Causality(nb::handle object, AttentionOptions* options, PagedBatch* batch) {
    if (!IsArray(object)) {
      options->causal = Bool(object, "causal", "a bool or an array of bool");
      return;
    }
    const Array flags(object, "causal");
    CheckElement(flags, Element::kBool);
    CheckAxes(flags, 1, "1-dimensional");
    if (flags.axis(0).size != static_cast<int64_t>(batch->kv_lens.size())) {
      ThrowValueError("causal has shape " + flags.Shape() + " but kv_lens names " +
                      std::to_string(batch->kv_lens.size()) + " sequences");
    }
    for (int64_t i = 0; i < flags.axis(0).size; ++i) {
      flags_.push_back(static_cast<const uint8_t*>(flags.data())[i * flags.axis(0).stride]);
    }
    options->causal = false;
    batch->causal = flags_;
  }

 private:
  std::vector<uint8_t> flags_;
};

// One number for each query head; `name` is for error texts.
std::vector<float> OfHeads(nb::handle object, const char* name, int64_t heads) {
  std::vector<float> numbers;
  if (!object.is_none()) {
    numbers = Floats(object, name);
    if (numbers.empty() && heads != 0) {  // the entry point would take it for None
      ThrowValueError(std::string(name) + " is empty; it must have one element per query head");
    }
  }
  return numbers;
}

// The results of a call on x: `out`, given or new, and lse if it is wanted.
class Results {
 public:
  // Shape [tokens, heads, head_dim], the first two as in x.
  Results(const Array& x, int64_t head_dim, nb::handle given, bool want_lse)
      : like_(x), want_lse_(want_lse) {
    const int64_t shape[] = {x.axis(0).size, x.axis(1).size, head_dim};
    if (given.is_none()) {
      fresh_ = NewArrayLike(x, x.element(), shape);
      view_ = {fresh_.data, shape[1] * shape[2], shape[2], nullptr, 0};
    } else {
      const Array& out = given_.emplace(given, "out", Access::kWrite);
      CheckElement(out, x.element());
      CheckShape(out, shape);
      CheckLastAxisContiguous(out);
      view_ = {out.data(), out.axis(0).stride, out.axis(1).stride, nullptr, 0};
    }
    if (want_lse) {
      lse_ = NewArrayLike(x, Element::kF32, std::span(shape).first(2));
      view_.lse = static_cast<float*>(lse_.data);
      view_.lse_token_stride = shape[1];
    }
  }

  const AttentionOut& view() const { return view_; }

  nb::object Finish() {
    nb::object out = given_ ? nb::borrow(given_->object()) : Finished(like_, std::move(fresh_));
    if (!want_lse_) {  // not view_.lse == nullptr, which an lse without elements is too
      return out;
    }
    return nb::make_tuple(std::move(out), Finished(like_, std::move(lse_)));
  }

 private:
  const Array& like_;
  const bool want_lse_;
  std::optional<Array> given_;
  NewArray fresh_, lse_;
  AttentionOut view_;
};

nb::object PyPagedAttention(nb::handle q_object, nb::handle keys_object, nb::handle values_object,
                            nb::handle kv_lens_object, nb::handle page_table_object,
                            nb::handle cu_q_lens_object, nb::handle layout_name, nb::handle scale,
                            nb::handle causal, nb::handle window, nb::handle window_right,
                            nb::handle soft_cap, nb::handle sinks, nb::handle mask,
                            nb::handle alibi_slopes, nb::handle key_scales_object,
                            nb::handle value_scales_object, nb::handle key_format,
                            nb::handle value_format, nb::handle out, nb::handle return_lse) {
  const Array q(q_object, "q");
  const Layout layout = Layout::Of(layout_name);
  const HeadsView q_view = Heads(q, kQueryForm);
  KvPagesArgument keys(keys_object, "keys", key_format, "key_format", layout);
  keys.AddScales(key_scales_object, "key_scales");
  KvPagesArgument values(values_object, "values", value_format, "value_format", layout);
  values.AddScales(value_scales_object, "value_scales");
  const Indices kv_lens(kv_lens_object, "kv_lens", 1, "1-dimensional");
  const Indices page_table(page_table_object, "page_table", 2, "[sequences, max_pages]");
  PagedBatch batch;
  batch.kv_lens = kv_lens.get();
  const int64_t sequences = static_cast<int64_t>(batch.kv_lens.size());
  if (page_table.array().axis(0).size != sequences) {
    ThrowValueError("page_table has shape " + page_table.array().Shape() + " but kv_lens names " +
                    std::to_string(sequences) + " sequences");
  }
  batch.page_table = page_table.data();
  batch.max_pages = page_table.array().axis(1).size;
  batch.page_table_stride = page_table.row_stride();
  std::optional<Indices> cu_q_lens;
  if (!cu_q_lens_object.is_none()) {
    batch.cu_q_lens = cu_q_lens.emplace(cu_q_lens_object, "cu_q_lens", 1, "1-dimensional").get();
    if (batch.cu_q_lens.empty()) {  // the entry point would take it for None
      ThrowValueError("cu_q_lens is empty; it must have one element more than kv_lens");
    }
  }

  AttentionOptions options;
  options.scale = OptionalFloat(scale, "scale");
  const Causality causality(causal, &options, &batch);
  if (!window.is_none()) {
    options.window = Int64(window, "window");
  }
  if (!window_right.is_none()) {
    options.window_right = Int64(window_right, "window_right");
  }
  options.soft_cap = OptionalFloat(soft_cap, "soft_cap");
  const std::vector<float> sink_logits = OfHeads(sinks, "sinks", q_view.heads);
  options.sinks = sink_logits;
  const std::vector<float> slopes = OfHeads(alibi_slopes, "alibi_slopes", q_view.heads);
  options.alibi_slopes = slopes;
  std::optional<MaskArgument> mask_argument;
  if (!mask.is_none()) {
    options.mask = mask_argument.emplace(mask).view();
  }
  Results results(q, values.view().head_dim, out, Bool(return_lse, "return_lse"));
  {
    const KernelScope scope;
    PagedAttention(q_view, keys.view(), values.view(), batch, results.view(), options);
  }
  return results.Finish();
}

nb::object PyMergeStates(nb::handle outs_object, nb::handle lses_object) {
  const auto element = [](const char* list, size_t i) {
    return std::string(list) + "[" + std::to_string(i) + "]";
  };
  std::deque<Array> outs;
  std::deque<Lse> lses;
  std::deque<std::string> names;
  for (const nb::handle out : Items(outs_object, "outs", "arrays")) {
    outs.emplace_back(out, names.emplace_back(element("outs", outs.size())).c_str());
  }
  for (const nb::handle lse : Items(lses_object, "lses", "arrays")) {
    lses.emplace_back(lse, names.emplace_back(element("lses", lses.size())).c_str());
  }
  if (outs.empty() || outs.size() != lses.size()) {
    ThrowValueError("outs has " + std::to_string(outs.size()) + " parts and lses " +
                    std::to_string(lses.size()) + "; they must be as many, and at least one");
  }
  std::vector<AttentionPart> parts;
  for (size_t i = 0; i < outs.size(); ++i) {
    const HeadsView view = Heads(outs[i], kQueryForm);
    const int64_t shape[] = {view.tokens, view.heads};
    CheckShape(lses[i].array(), shape);
    parts.push_back({view, lses[i].data(), lses[i].stride()});
  }
  Results results(outs.front(), outs.front().axis(2).size, nb::none(), true);
  {
    const KernelScope scope;
    MergeStates(parts, results.view());
  }
  return results.Finish();
}

}  // namespace

void BindAttention(nb::module_& m) {
  const auto any = nb::arg().none();  // the functions below handle None
  m.def("paged_attention", &PyPagedAttention, any, any, any, any, any, any, any, any, any, any, any,
        any, any, any, any, any, any, any, any, any, any);
  m.def("merge_states", &PyMergeStates, any, any);
}

}  // namespace riffle::python
