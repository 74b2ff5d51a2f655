// Arrays of NumPy, PyTorch, JAX and other DLPack producers as plain views, and new arrays like
// them. Nothing is copied on the way in.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>
#include <string>

#include "frameworks.h"

namespace riffle::python {

enum class Access : uint8_t { kRead, kWrite };

// NumPy's own limit.
inline constexpr int kMaxAxes = 64;

struct Axis {
  int64_t size;
  int64_t stride;  // elements
};

struct Buffer {
  Py_buffer view = {};

  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { PyBuffer_Release(&view); }  // does nothing if the view was never filled
};

// A view of the memory of one Python array, and a reference that keeps the memory alive. Strides
// are in elements. Create and destroy it under the GIL; it may be read without.
class Array {
 public:
  // Throws TypeError if `object` is no array, ValueError if its memory cannot be read (or written)
  // in place: on another device, read-only, or with strides that split elements. `name` is for
  // error texts and must outlive the view.
  Array(nb::handle object, const char* name, Access access = Access::kRead);
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const char* name() const { return name_; }
  nb::handle object() const { return object_; }
  Framework framework() const { return framework_; }
  Element element() const { return element_; }
  void* data() const { return data_; }
  int ndim() const { return ndim_; }
  const Axis& axis(int i) const { return axes_[i < 0 ? i + ndim_ : i]; }

  bool empty() const;
  std::string Shape() const;  // "(2, 3)"
  std::string DTypeName() const;

 private:
  void ReadBuffer(nb::handle object, Access access);
  void ReadNumPy(nb::object array, Access access);
  void ReadJax(Access access);
  void ReadTorch(Access access);
  void ReadDLPack(nb::handle object, Access access);
  void SetView(const nb::dlpack::dltensor& view);

  const char* name_;
  nb::object object_;
  nb::object owner_;  // the object that was read instead of object_: a view of the same memory
  Buffer buffer_;
  nb::ndarray<nb::ro> dlpack_;
  Framework framework_;
  Element element_ = Element::kOther;
  int ndim_ = 0;
  void* data_ = nullptr;
  Axis axes_[kMaxAxes];
};

// "(2, 3)"
std::string ShapeText(std::span<const int64_t> shape);

// An uninitialised row-major array and its memory.
struct NewArray {
  nb::object object;
  void* data = nullptr;
};
NewArray NewNumPyArray(Element element, std::span<const int64_t> shape);

// A new array of x's framework, on x's device if the framework has several. For JAX, whose arrays
// are immutable, it is a NumPy array until Finished.
NewArray NewArrayLike(const Array& x, Element element, std::span<const int64_t> shape);

// Turns a filled array from NewArrayLike into an array of x's framework. Copies nothing.
nb::object Finished(const Array& x, NewArray array);

}  // namespace riffle::python
