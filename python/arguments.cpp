#include "arguments.h"

#include <cstring>
#include <limits>

namespace riffle::python {

DType FloatingDType(const Array& x) {
  switch (x.element()) {
    case Element::kF32:
      return DType::kF32;
    case Element::kF16:
      return DType::kF16;
    case Element::kBF16:
      return DType::kBF16;
    default:
      ThrowTypeError(std::string(x.name()) + " has dtype " + x.DTypeName() +
                     "; float32, float16 and bfloat16 are accepted");
  }
}

DType SelectionDType(const Array& x) {
  switch (x.element()) {
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
    case Element::kBool:
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
    case Element::kOther:
      break;
  }
  ThrowTypeError(std::string(x.name()) + " has dtype " + x.DTypeName() +
                 "; bfloat16, float16, float32, float64, bool and integers of 8 to 64 bits are "
                 "accepted");
}

void CheckElement(const Array& x, Element element) {
  if (x.element() != element) {
    ThrowTypeError(std::string(x.name()) + " has dtype " + x.DTypeName() + "; it must be " +
                   Name(element));
  }
}

void CheckAxes(const Array& x, int ndim, const char* form) {
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
  // The copy is for strides and for addresses that an int32_t* may not have.
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

int64_t Int64(nb::handle value, const char* name) {
  const nb::object index = nb::steal(PyNumber_Index(value.ptr()));
  if (!index.is_valid()) {
    PyErr_Clear();
    ThrowTypeError(std::string(name) + " must be an int, not " +
                   nb::cast<std::string>(nb::repr(value)));
  }
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

}  // namespace riffle::python
