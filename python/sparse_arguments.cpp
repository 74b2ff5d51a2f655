#include "sparse_arguments.h"

namespace riffle::python {

void ThrowNoneOf(const char* name, nb::handle value, const char* names) {
  ThrowValueError(std::string(name) + " = " + Repr(value) + " is none of " + names);
}

DType IndexDType(const Array& x, bool e4m3) {
  if (e4m3) {
    CheckElement(x, Element::kU8);
    return DType::kE4M3;
  }
  return x.element() == Element::kI8 ? DType::kI8 : FloatingDType(x);
}

OutMatrix::OutMatrix(const Array& like, nb::handle given, Element element, int64_t rows,
                     int64_t cols)
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

}  // namespace riffle::python
