#include "arguments.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>

#include "kernel_scope.h"

namespace riffle::python {
namespace {

float FloatOfHalf(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  const float magnitude = exponent == 31 ? (mantissa != 0 ? NAN : INFINITY)
                          : exponent == 0
                              ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// nullopt for bool and for elements that no call supports.
std::optional<DType> DTypeOf(Element element) {
  switch (element) {
    case Element::kF32:
      return DType::kF32;
    case Element::kF16:
      return DType::kF16;
    case Element::kBF16:
      return DType::kBF16;
    case Element::kF64:
      return DType::kF64;
    case Element::kI8:
      return DType::kI8;
    case Element::kU8:
      return DType::kU8;
    case Element::kI16:
      return DType::kI16;
    case Element::kU16:
      return DType::kU16;
    case Element::kI32:
      return DType::kI32;
    case Element::kU32:
      return DType::kU32;
    case Element::kI64:
      return DType::kI64;
    case Element::kU64:
      return DType::kU64;
    case Element::kE4M3:
      return DType::kE4M3;
    case Element::kE5M2:
      return DType::kE5M2;
    case Element::kE8M0:
      return DType::kE8M0;
    case Element::kBool:
    case Element::kOther:
      break;
  }
  return std::nullopt;
}

}  // namespace

DType DTypeAmong(const Array& x, std::initializer_list<DType> accepted, const char* text) {
  const std::optional<DType> dtype = DTypeOf(x.element());
  if (!dtype || std::find(accepted.begin(), accepted.end(), *dtype) == accepted.end()) {
    ThrowTypeError(std::string(x.name()) + " has dtype " + x.DTypeName() + "; " + text +
                   " are accepted");
  }
  return *dtype;
}

DType FloatingDType(const Array& x) {
  return DTypeAmong(x, {DType::kF32, DType::kF16, DType::kBF16}, "float32, float16 and bfloat16");
}

DType MaskDType(const Array& x) {
  if (x.element() == Element::kBool) {
    return DType::kU8;
  }
  return DTypeAmong(x, {DType::kF32, DType::kF16, DType::kBF16},
                    "float32, float16, bfloat16 and bool");
}

DType SelectionDType(const Array& x) {
  if (x.element() == Element::kBool) {
    return DType::kU8;
  }
  return DTypeAmong(x,
                    {DType::kF32, DType::kF16, DType::kBF16, DType::kF64, DType::kI8, DType::kU8,
                     DType::kI16, DType::kU16, DType::kI32, DType::kU32, DType::kI64, DType::kU64},
                    "bfloat16, float16, float32, float64, bool and integers of 8 to 64 bits");
}

void CheckElement(const Array& x, Element element) {
  if (x.element() != element) {
    ThrowTypeError(std::string(x.name()) + " has dtype " + x.DTypeName() + "; it must be " +
                   Name(element));
  }
}

void CheckAxes(const Array& x, int ndim, const char* form) {
  if (x.element() == Element::kOther) {  // no call supports it, whatever its shape
    ThrowTypeError(std::string(x.name()) + " has dtype " + x.DTypeName() +
                   ", which no call of riffle takes");
  }
  if (x.ndim() != ndim) {
    ThrowValueError(std::string(x.name()) + " has shape " + x.Shape() + "; it must be " + form);
  }
}

void CheckLastAxisContiguous(const Array& x) {
  if (x.axis(-1).size > 1 && x.axis(-1).stride != 1 && !x.empty()) {
    ThrowValueError(std::string(x.name()) + "'s last axis has a stride of " +
                    std::to_string(x.axis(-1).stride) +
                    " elements; it must be contiguous (stride 1)");
  }
}

void CheckShape(const Array& x, std::span<const int64_t> shape) {
  bool equal = x.ndim() == static_cast<int>(shape.size());
  for (int i = 0; equal && i < x.ndim(); ++i) {
    equal = x.axis(i).size == shape[static_cast<size_t>(i)];
  }
  if (!equal) {
    ThrowValueError(std::string(x.name()) + " has shape " + x.Shape() + "; it must be " +
                    ShapeText(shape));
  }
}

int MergeAxes(const Array& x, int begin, int end, Axis* merged) {
  int count = 0;
  for (int i = begin; i < end; ++i) {
    const Axis& axis = x.axis(i);
    if (axis.size == 1) {
      continue;
    }
    if (count > 0 && merged[count - 1].stride == axis.stride * axis.size) {
      merged[count - 1] = {merged[count - 1].size * axis.size, axis.stride};
    } else {
      merged[count++] = axis;
    }
  }
  return count;
}

Int32Span::Int32Span(nb::handle object, const char* name) : array_(object, name) {
  CheckElement(array_, Element::kI32);
  CheckAxes(array_, 1, "1-dimensional");
  const auto [size, stride] = array_.axis(0);
  const auto* data = static_cast<const int32_t*>(array_.data());
  // Copies if elements are strided, or at an address that is not aligned for int32_t.
  if ((size > 1 && stride != 1) || reinterpret_cast<uintptr_t>(data) % alignof(int32_t) != 0) {
    copy_.resize(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      std::memcpy(&copy_[static_cast<size_t>(i)],
                  static_cast<const uint8_t*>(array_.data()) + i * stride * 4, 4);
    }
    data = copy_.data();
  }
  span_ = {data, static_cast<size_t>(size)};
}

Indices::Indices(nb::handle object, const char* name, int ndim, const char* form)
    : array_(object, name) {
  const Element element = array_.element();
  if (element != Element::kI32 && element != Element::kI64) {
    ThrowTypeError(std::string(name) + " has dtype " + array_.DTypeName() +
                   "; it must be int32 or int64");
  }
  CheckAxes(array_, ndim, form);
  const auto size = SizeOf(element);
  const int64_t rows = ndim > 1 ? array_.axis(0).size : 1;
  const auto [cols, stride] = array_.axis(-1);
  const void* data = array_.data();
  row_stride_ = ndim > 1 ? array_.axis(0).stride : cols;
  // Copies if elements are strided, or at an address that is not aligned for the integer.
  if ((cols > 1 && stride != 1) ||
      reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size) != 0) {
    copy_.resize(static_cast<size_t>(rows * cols));  // enough for either type
    auto* to = reinterpret_cast<uint8_t*>(copy_.data());
    for (int64_t i = 0; i < rows * cols; ++i) {
      const int64_t from = i / cols * row_stride_ + i % cols * stride;
      std::memcpy(to + i * size, static_cast<const uint8_t*>(data) + from * size,
                  static_cast<size_t>(size));
    }
    data = copy_.data();
    row_stride_ = cols;
  }
  data_ = element == Element::kI64 ? IndexPointer(static_cast<const int64_t*>(data))
                                   : IndexPointer(static_cast<const int32_t*>(data));
}

std::string Repr(nb::handle value) {
  constexpr size_t kLimit = 200;
  const nb::object repr = nb::steal(SleepAtExit([&] { return PyObject_Repr(value.ptr()); }));
  Py_ssize_t size = 0;
  const char* const text = repr.is_valid() ? PyUnicode_AsUTF8AndSize(repr.ptr(), &size) : nullptr;
  if (text == nullptr) {
    PyErr_Clear();
    return "an object of type " + Text(nb::getattr(value.type(), "__name__"));
  }
  const std::string_view whole(text, static_cast<size_t>(size));
  if (whole.size() <= kLimit) {
    return std::string(whole);
  }
  size_t end = kLimit;
  while ((static_cast<uint8_t>(whole[end]) & 0xc0) == 0x80) {  // do not cut inside a character
    --end;
  }
  return std::string(whole.substr(0, end)) + "...";
}

nb::list Items(nb::handle object, const char* name, const char* what) {
  const nb::object iterator =
      nb::steal(SleepAtExit([&] { return PyObject_GetIter(object.ptr()); }));
  if (!iterator.is_valid()) {
    PyErr_Clear();
    ThrowTypeError(std::string(name) + " must be a sequence of " + what + ", not " + Repr(object));
  }
  return nb::steal<nb::list>(
      Checked(SleepAtExit([&] { return PySequence_List(iterator.ptr()); })).release());
}

nb::object Index(nb::handle value, const char* name) {
  nb::object index = nb::steal(SleepAtExit([&] { return PyNumber_Index(value.ptr()); }));
  if (!index.is_valid()) {
    PyErr_Clear();
    ThrowTypeError(std::string(name) + " must be an int, not " + Repr(value));
  }
  return index;
}

double Double(nb::handle value, const char* name, const char* form) {
  const double number = SleepAtExit([&] { return PyFloat_AsDouble(value.ptr()); });
  if (number == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    ThrowTypeError(std::string(name) + " must be " + form + ", not " + Repr(value));
  }
  return number;
}

int64_t Int64(nb::handle value, const char* name) {
  const nb::object index = Index(value, name);
  int overflow = 0;
  const long long result = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  return overflow == 0  ? result
         : overflow > 0 ? std::numeric_limits<int64_t>::max()
                        : std::numeric_limits<int64_t>::min();
}

int32_t Int32(nb::handle value, const char* name) {
  const int64_t wide = Int64(value, name);
  constexpr int64_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  return static_cast<int32_t>(wide < kMin ? kMin : wide > kMax ? kMax : wide);
}

bool Bool(nb::handle value, const char* name, const char* form) {
  if (!PyBool_Check(value.ptr()) && !nb::isinstance(value, known().numpy_bool)) {
    ThrowTypeError(std::string(name) + " must be " + form + ", not " + Repr(value));
  }
  return IsTrue(value);
}

bool IsArray(nb::handle object) {
  if (PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr()) ||
      FrameworkOf(object) == Framework::kNone) {
    return false;
  }
  if (FrameworkOf(object) == Framework::kMasked) {
    return true;  // Array throws and says why not
  }
  const nb::object ndim = nb::getattr(object, "ndim", nb::none());
  return ndim.is_none() || Int64(ndim, "ndim") != 0;
}

float FloatAt(const void* element, DType dtype) {
  uint32_t bits = 0;
  std::memcpy(&bits, element, SizeOf(dtype));
  return dtype == DType::kF16   ? FloatOfHalf(static_cast<uint16_t>(bits))
         : dtype == DType::kF32 ? std::bit_cast<float>(bits)
                                : std::bit_cast<float>(bits << 16);
}

}  // namespace riffle::python
