// Writing keys and values into pages: Python's arguments to riffle/write_kv.h.
#include "riffle/write_kv.h"

#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arguments.h"
#include "array.h"
#include "bindings.h"
#include "kernel_scope.h"
#include "kv_arguments.h"

namespace riffle::python {
namespace {

// Slots where they stand, or copied if they are not contiguous or not aligned.
class Slots {
 public:
  explicit Slots(nb::handle object) : array_(object, "slots") {
    const bool is_wide = array_.element() == Element::kI64;
    if (!is_wide) {
      CheckElement(array_, Element::kI32);
    }
    CheckAxes(array_, 1, "1-dimensional");
    const auto [size, stride] = array_.axis(0);
    const auto* const bytes = static_cast<const uint8_t*>(array_.data());
    const int64_t element = is_wide ? 8 : 4;
    if ((size > 1 && stride != 1) || reinterpret_cast<uintptr_t>(bytes) % 8 != 0) {
      for (int64_t i = 0; i < size; ++i) {
        int64_t wide = 0;
        int32_t narrow = 0;
        std::memcpy(is_wide ? static_cast<void*>(&wide) : &narrow, bytes + i * stride * element,
                    static_cast<size_t>(element));
        copy_.push_back(is_wide ? wide : narrow);
      }
      span_ = IndexSpan(copy_);
    } else if (is_wide) {
      span_ = IndexSpan(static_cast<const int64_t*>(array_.data()), static_cast<size_t>(size));
    } else {
      span_ = IndexSpan(static_cast<const int32_t*>(array_.data()), static_cast<size_t>(size));
    }
  }

  const IndexSpan& get() const { return span_; }

 private:
  Array array_;
  std::vector<int64_t> copy_;
  IndexSpan span_;
};

// The coding of a pool's rows: by its dtype, or by a name for arrays of uint8.
struct Coding {
  DType dtype;
  KvFormat format = KvFormat::kPlain;

  static Coding Of(const Array& pages, nb::handle name, const char* argument) {
    if (name.is_none()) {
      if (pages.element() == Element::kI8) return {DType::kI8};
      return {FloatingDType(pages)};
    }
    std::string_view text;
    if (nb::try_cast(name, text)) {
      for (const DType dtype : {DType::kE4M3, DType::kE5M2}) {
        if (text == Name(dtype)) return Bytes(pages, {dtype});
      }
      for (int i = 1; i < kNumKvFormats; ++i) {
        const auto format = static_cast<KvFormat>(i);
        if (text == Name(format)) return Bytes(pages, {DType::kU8, format});
      }
    }
    ThrowValueError(std::string(argument) + " = " + Repr(name) +
                    " is none of 'q8_0', 'q4_0', 'q4_1', 'q5_0', 'q5_1', 'iq4_nl', "
                    "'float8_e4m3fn', 'float8_e5m2'");
  }

 private:
  static Coding Bytes(const Array& pages, const Coding& coding) {
    CheckElement(pages, Element::kU8);
    return coding;
  }
};

PagedKvOut Pages(const Array& x, const Layout& axes, const Coding& coding) {
  CheckAxes(x, 4, axes.form);
  CheckLastAxisContiguous(x);
  const Axis &page = x.axis(axes.page), &token = x.axis(axes.token), &head = x.axis(axes.head);
  int64_t head_dim = x.axis(3).size;
  if (coding.format != KvFormat::kPlain) {
    const int64_t block = BlockBytes(coding.format);
    if (head_dim % block != 0) {
      ThrowValueError(std::string(x.name()) + " has shape " + x.Shape() +
                      "; its last axis must be a multiple of the " + std::to_string(block) +
                      " bytes of a block of " + Name(coding.format));
    }
    head_dim = head_dim / block * 32;
  }
  PagedKvOut pages;
  pages.data = x.data();
  pages.dtype = coding.dtype;
  pages.format = coding.format;
  pages.num_pages = page.size;
  pages.page_size = token.size;
  pages.kv_heads = head.size;
  pages.head_dim = head_dim;
  pages.page_stride = page.stride;
  pages.token_stride = token.stride;
  pages.head_stride = head.stride;
  return pages;
}

// One number, or an array that broadcasts to `pages` without its last axis; with four axes the last
// one counts groups along head_dim. uint8 stands for float8_e8m0fnu.
class Scales {
 public:
  Scales(nb::handle object, const char* name, bool compute) : compute_(compute) {
    if (object.is_none()) {
      if (compute) {
        ThrowValueError(std::string(name) +
                        " is None but compute_scales needs an array to write them to");
      }
      return;
    }
    if (IsArray(object)) {
      array_.emplace(object, name, compute ? Access::kWrite : Access::kRead);
      return;
    }
    if (compute) {
      ThrowTypeError(std::string(name) + " must be an array to which compute_scales writes, not " +
                     Repr(object));
    }
    const double number = PyFloat_AsDouble(object.ptr());
    if (number == -1.0 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      ThrowTypeError(std::string(name) + " must be a number, an array or None, not " +
                     Repr(object));
    }
    number_ = static_cast<float>(number);
    is_number_ = true;
  }

  void AddTo(const Array& pages, const Layout& axes, PagedKvOut* view) const {
    if (is_number_) {
      view->scales.data = &number_;
    }
    if (!array_) {
      return;
    }
    KvScales& scales = view->scales;
    scales.dtype = array_->element() == Element::kU8 ? DType::kE8M0 : FloatingDType(*array_);
    const int ndim = array_->ndim();
    if (ndim == 4) {
      const auto [groups, stride] = array_->axis(3);
      if (groups < 1 || view->head_dim % groups != 0) {
        ThrowShape(pages);
      }
      scales.group = groups == 1 ? 0 : view->head_dim / groups;
      scales.group_stride = groups == 1 ? 0 : stride;
    } else if (ndim > 4) {
      ThrowShape(pages);
    }
    scales.page_stride = Stride(pages, axes.page);
    scales.token_stride = Stride(pages, axes.token);
    scales.head_stride = Stride(pages, axes.head);
    (compute_ ? view->computed_scales = array_->data() : nullptr);
    (compute_ ? nullptr : view->scales.data = array_->data());
  }

 private:
  [[noreturn]] void ThrowShape(const Array& pages) const {
    ThrowValueError(std::string(array_->name()) + " has shape " + array_->Shape() +
                    "; it must broadcast to that of " + pages.name() + ", " + pages.Shape() +
                    ", without its last axis, or with a last axis of groups along head_dim");
  }

  // Of the scales along axis `axis` of the pages.
  int64_t Stride(const Array& pages, int axis) const {
    const int own = array_->ndim() == 4 ? axis : axis - 3 + array_->ndim();
    if (own >= 0 && array_->axis(own).size != 1 &&
        array_->axis(own).size != pages.axis(axis).size) {
      ThrowShape(pages);
    }
    return own < 0 || array_->axis(own).size == 1 ? 0 : array_->axis(own).stride;
  }

  std::optional<Array> array_;
  float number_ = 0;
  bool is_number_ = false;
  bool compute_;
};

void PyWriteKv(nb::handle keys_object, nb::handle values_object, nb::handle slots_object,
               nb::handle key_pages_object, nb::handle value_pages_object, nb::handle layout,
               nb::handle key_scales_object, nb::handle value_scales_object, nb::handle key_format,
               nb::handle value_format, nb::handle compute_object) {
  const Array keys(keys_object, "keys"), values(values_object, "values");
  const Slots slots(slots_object);
  const Array key_pages(key_pages_object, "key_pages", Access::kWrite);
  const Array value_pages(value_pages_object, "value_pages", Access::kWrite);
  const Layout axes = Layout::Of(layout);
  const HeadsView k = TokensView(keys), v = TokensView(values);
  const Coding key_coding = Coding::Of(key_pages, key_format, "key_format");
  const Coding value_coding = Coding::Of(value_pages, value_format, "value_format");
  PagedKvOut to_keys = Pages(key_pages, axes, key_coding);
  PagedKvOut to_values = Pages(value_pages, axes, value_coding);
  // Only what is quantised has scales: the other side of a call may be of any dtype.
  const bool compute = Bool(compute_object, "compute_scales");
  const auto quantised = [](const Coding& coding) {
    return coding.dtype == DType::kI8 || coding.dtype == DType::kE4M3 ||
           coding.dtype == DType::kE5M2;
  };
  if (compute && !quantised(key_coding) && !quantised(value_coding)) {
    ThrowValueError(
        "compute_scales = True but neither key_pages nor value_pages is of a dtype "
        "with scales: float8_e4m3fn, float8_e5m2 or int8");
  }
  const Scales key_scales(key_scales_object, "key_scales", compute && quantised(key_coding));
  const Scales value_scales(value_scales_object, "value_scales",
                            compute && quantised(value_coding));
  key_scales.AddTo(key_pages, axes, &to_keys);
  value_scales.AddTo(value_pages, axes, &to_values);
  const KernelScope scope;
  WriteKv(k, v, slots.get(), to_keys, to_values);
}

}  // namespace

void BindWriteKv(nb::module_& m) {
  const auto any = nb::arg().none();  // what None means is for the functions to say
  m.def("write_kv", &PyWriteKv, any, any, any, any, any, any, any, any, any, any, any);
}

}  // namespace riffle::python
