#include "kv_arguments.h"

#include <string>
#include <string_view>

namespace riffle::python {
namespace {

DType PageDType(const Array& x) {
  return DTypeAmong(
      x, {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE5M2, DType::kI8},
      "float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 and int8 (with a format: uint8)");
}

DType ScaleDType(const Array& x) {
  return DTypeAmong(x, {DType::kF32, DType::kF16, DType::kBF16, DType::kE8M0},
                    "float32, float16, bfloat16 and float8_e8m0fnu");
}

}  // namespace

Layout Layout::Of(nb::handle name) {
  std::string_view text;
  if (nb::try_cast(name, text)) {
    if (text == "HND") return {0, 2, 1, "[pages, kv_heads, page_size, head_dim]"};
    if (text == "NHD") return {0, 1, 2, "[pages, page_size, kv_heads, head_dim]"};
    if (text == "JAX") return {1, 2, 0, "[kv_heads, pages, page_size, head_dim]"};
  }
  ThrowValueError("layout = " + Repr(name) + " is none of 'HND', 'NHD', 'JAX'");
}

HeadsView TokensView(const Array& x) {
  const DType dtype = FloatingDType(x);
  CheckAxes(x, 3, "[tokens, kv_heads, head_dim]");
  CheckLastAxisContiguous(x);
  return {x.data(),         dtype,           x.axis(0).size, x.axis(1).size, x.axis(2).size,
          x.axis(0).stride, x.axis(1).stride};
}

std::optional<float> OptionalFloat(nb::handle value, const char* name) {
  if (value.is_none()) {
    return std::nullopt;
  }
  return static_cast<float>(Double(value, name, "a number or None"));
}

HeadsView Heads(const Array& x, const char* form) {
  const DType dtype = FloatingDType(x);
  CheckAxes(x, 3, form);
  CheckLastAxisContiguous(x);
  return {x.data(),         dtype,           x.axis(0).size, x.axis(1).size, x.axis(2).size,
          x.axis(0).stride, x.axis(1).stride};
}

KvPagesArgument::KvPagesArgument(nb::handle pages, const char* name, nb::handle format,
                                 const char* format_name, const Layout& layout, Access access)
    : pages_(pages, name, access), layout_(layout) {
  if (format.is_none()) {
    view_.dtype = PageDType(pages_);
  }
  CheckAxes(pages_, 4, layout.form);
  CheckLastAxisContiguous(pages_);
  const Axis &page = pages_.axis(layout.page), &token = pages_.axis(layout.token),
             &head = pages_.axis(layout.head);
  view_.data = pages_.data();
  view_.num_pages = page.size;
  view_.page_size = token.size;
  view_.kv_heads = head.size;
  view_.page_stride = page.stride;
  view_.token_stride = token.stride;
  view_.head_stride = head.stride;
  view_.head_dim = pages_.axis(3).size;
  if (!format.is_none()) {
    SetFormat(format, format_name);
  }
}

void KvPagesArgument::SetFormat(nb::handle format, const char* format_name) {
  std::string_view text;
  if (!nb::try_cast(format, text)) {
    ThrowTypeError(std::string(format_name) + " must be a str or None, not " + Repr(format));
  }
  view_.dtype = DType::kU8;
  for (const DType dtype : {DType::kE4M3, DType::kE5M2}) {
    if (text == Name(dtype)) {
      view_.dtype = dtype;
    }
  }
  for (int i = 1; i < kNumKvFormats; ++i) {
    if (text == Name(static_cast<KvFormat>(i))) {
      view_.format = static_cast<KvFormat>(i);
    }
  }
  const bool in_blocks = view_.format != KvFormat::kPlain;
  if (!in_blocks && view_.dtype == DType::kU8) {
    ThrowValueError(std::string(format_name) + " = " + Repr(format) +
                    " is none of 'q8_0', 'q4_0', 'q4_1', 'q5_0', 'q5_1', 'iq4_nl', "
                    "'float8_e4m3fn', 'float8_e5m2'");
  }
  CheckElement(pages_, Element::kU8);
  if (!in_blocks) {
    return;
  }
  const int64_t bytes = pages_.axis(3).size;
  const int64_t block = BlockBytes(view_.format);
  if (bytes % block != 0) {
    ThrowValueError(std::string(pages_.name()) + " has shape " + pages_.Shape() + ": rows of " +
                    std::to_string(bytes) + " bytes are no whole blocks of " + Name(view_.format) +
                    ", " + std::to_string(block) + " bytes each");
  }
  view_.head_dim = bytes / block * 32;
}

void KvPagesArgument::AddScales(nb::handle scales, const char* scales_name, Access access) {
  scales_access_ = access;
  const bool computed = access == Access::kWrite;
  if (computed && scales.is_none()) {
    ThrowValueError(std::string(scales_name) +
                    " is None but compute_scales = True needs an array to write them to");
  }
  if (scales.is_none()) {
    return;
  }
  if (view_.dtype <= DType::kBF16) {
    ThrowTypeError(std::string(pages_.name()) + " has dtype " + pages_.DTypeName() + "; with " +
                   scales_name + " it must be int8, float8_e4m3fn or float8_e5m2");
  }
  if (IsArray(scales)) {
    SetStrides(scales_.emplace(scales, scales_name, access));
    return;
  }
  if (computed) {
    ThrowTypeError(std::string(scales_name) +
                   " must be an array, to which compute_scales = True writes, not " + Repr(scales));
  }
  number_ = static_cast<float>(Double(scales, scales_name, "a number, an array or None"));
  view_.scales.data = &number_;
}

void KvPagesArgument::SetStrides(const Array& x) {
  const auto refuse = [&] {
    ThrowValueError(std::string(x.name()) + " has shape " + x.Shape() +
                    "; it must broadcast to that of " + pages_.name() + ", " + pages_.Shape() +
                    ", without its last axis, or have one more axis: a scale for each 32, 64 or "
                    "128 elements");
  };
  if (x.ndim() > 4) {
    refuse();
  }
  view_.scales.data = x.data();
  view_.scales.dtype = ScaleDType(x);
  const bool grouped = x.ndim() == 4;
  for (int axis = 0; axis < 3; ++axis) {
    const int own = axis - (grouped ? 4 : 3) + x.ndim();
    if (own >= 0 && x.axis(own).size != 1 && x.axis(own).size != pages_.axis(axis).size) {
      refuse();
    }
  }
  if (grouped && x.axis(3).size != 1) {
    const int64_t groups = x.axis(3).size;
    const int64_t group = groups > 0 ? view_.head_dim / groups : 0;
    if (group * groups != view_.head_dim || (group != 32 && group != 64 && group != 128)) {
      refuse();
    }
    view_.scales.group = group;
    view_.scales.group_stride = x.axis(3).stride;
  }
  view_.scales.page_stride = ScaleStride(layout_.page);
  view_.scales.token_stride = ScaleStride(layout_.token);
  view_.scales.head_stride = ScaleStride(layout_.head);
}

PagedKvOut KvPagesArgument::out() const {
  PagedKvOut out;
  out.data = pages_.data();
  out.dtype = view_.dtype;
  out.num_pages = view_.num_pages;
  out.page_size = view_.page_size;
  out.kv_heads = view_.kv_heads;
  out.head_dim = view_.head_dim;
  out.page_stride = view_.page_stride;
  out.token_stride = view_.token_stride;
  out.head_stride = view_.head_stride;
  out.scales = view_.scales;
  out.format = view_.format;
  if (scales_access_ == Access::kWrite) {
    out.scales.data = nullptr;
    out.computed_scales = scales_->data();
  }
  return out;
}

// The stride of the scales along axis `axis` of the pages.
int64_t KvPagesArgument::ScaleStride(int axis) const {
  const int own = axis - (scales_->ndim() == 4 ? 4 : 3) + scales_->ndim();
  return own < 0 || scales_->axis(own).size == 1 ? 0 : scales_->axis(own).stride;
}

}  // namespace riffle::python
