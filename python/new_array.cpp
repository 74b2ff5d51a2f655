// The arrays that results are written to: of the framework of an input, and filled in place.
#include <algorithm>
#include <utility>

#include "array.h"
#include "exchange.h"
#include "kernel_scope.h"

namespace riffle::python {
namespace {

// Refuses sizes beyond any memory here, because a framework's arithmetic might overflow on them.
void CheckBytes(Element element, std::span<const int64_t> shape) {
  int64_t bytes = SizeOf(element);
  bool fits = true;
  for (const int64_t size : shape) {
    fits = fits && !__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
  }
  if (!fits) {
    ThrowMemoryError("no memory for a result of shape " + ShapeText(shape) + " and dtype " +
                     Name(element) + ": more bytes than an address space has");
  }
}

nb::object ShapeTuple(std::span<const int64_t> shape) {
  nb::object tuple = Checked(PyTuple_New(static_cast<Py_ssize_t>(shape.size())));
  for (size_t i = 0; i < shape.size(); ++i) {
    PyTuple_SetItem(tuple.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(shape[i]));
  }
  return tuple;
}

// The memory of an array that this module has just created.
void* NumPyData(nb::handle array, Element element) {
  const nb::object plain = element == Element::kBF16
                               ? CallMethod(array, known().view, known().numpy_uint16)
                               : nb::borrow(array);
  Buffer buffer;
  if (PyObject_GetBuffer(plain.ptr(), &buffer.view, PyBUF_STRIDES | PyBUF_WRITABLE) != 0) {
    nb::raise_python_error();
  }
  return buffer.view.buf;
}

}  // namespace

NewArray NewNumPyArray(Element element, std::span<const int64_t> shape) {
  CheckBytes(element, shape);
  const nb::object tuple = ShapeTuple(shape);
  PyObject* arguments[] = {tuple.ptr(), NumPyDType(element).ptr()};
  nb::object array = Call(known().numpy_empty, arguments);
  return {array, NumPyData(array, element)};
}

NewArray NewArrayLike(const Array& x, Element element, std::span<const int64_t> shape) {
  CheckBytes(element, shape);
  if (x.framework() == Framework::kTorch) {
    if (const DLPackExchangeApi* api = TorchExchangeApi()) {
      NewArray tensor;
      tensor.object = NewTensor(*api, element, shape, &tensor.data);
      return tensor;
    }
    const nb::object tuple = ShapeTuple(shape);
    PyObject* arguments[] = {x.object().ptr(), tuple.ptr(), TorchDType(element).ptr()};
    nb::object tensor = Checked(SleepAtExit([&] {
      return PyObject_VectorcallMethod(known().new_empty.ptr(), arguments, 2,
                                       known().dtype_keyword.ptr());
    }));
    return {tensor, PyLong_AsVoidPtr(tensor.attr("data_ptr")().ptr())};
  }
  if (x.framework() == Framework::kJax) {
    const nb::object tuple = ShapeTuple(shape);
    PyObject* arguments[] = {tuple.ptr(), NumPyDType(element).ptr()};
    nb::object array = Call(known().Jax().attr("empty"), arguments);
    return {array, NumPyData(array, element)};
  }
  return NewNumPyArray(element, shape);
}

nb::object Finished(const Array& x, NewArray array) {
  if (x.framework() == Framework::kJax) {
    PyObject* arguments[] = {x.object().ptr(), array.object.ptr()};
    return Call(known().Jax().attr("wrap"), arguments);
  }
  return std::move(array.object);
}

}  // namespace riffle::python
