// Arguments that the calls of sparse attention share.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "arguments.h"
#include "array.h"

namespace riffle::python {

[[noreturn]] void ThrowNoneOf(const char* name, nb::handle value, const char* names);

// The index of a text in a list; ValueError if it is not there.
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

// The dtype of x. Codes of e4m3 are passed as uint8 with `e4m3` = true.
DType IndexDType(const Array& x, bool e4m3);

// A matrix argument that may be None; its last axis must be contiguous.
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

// An output [tokens, cols] of q's framework: the caller's, or a new one.
class OutMatrix {
 public:
  OutMatrix(const Array& like, nb::handle given, Element element, int64_t rows, int64_t cols);
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

}  // namespace riffle::python
