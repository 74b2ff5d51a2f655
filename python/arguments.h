// Helpers for the arguments of calls: shared checks, numbers, and lists of integers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "array.h"
#include "riffle/indices.h"
#include "riffle/types.h"

namespace riffle::python {

// Checks that calls share. Each throws, naming the array, what it is and what it must be.
DType FloatingDType(const Array& x);   // TypeError unless f32, f16 or bf16
DType MaskDType(const Array& x);       // likewise, or bool, which counts as u8
DType SelectionDType(const Array& x);  // any number; bool counts as uint8
// The dtype of x, TypeError unless it is one of `accepted`, which `text` lists for the error.
DType DTypeAmong(const Array& x, std::initializer_list<DType> accepted, const char* text);
void CheckElement(const Array& x, Element element);               // TypeError
void CheckAxes(const Array& x, int ndim, const char* form);       // ValueError; form: "[rows, n]"
void CheckLastAxisContiguous(const Array& x);                     // ValueError
void CheckShape(const Array& x, std::span<const int64_t> shape);  // ValueError

// Merges the axes [begin, end) of x into as few as their strides allow, without those of size 1, in
// row-major order. Returns how many are left. Pre: no axis among them has size 0.
int MergeAxes(const Array& x, int begin, int end, Axis* merged);

// An int32 [count] argument: read in place if it is contiguous, otherwise copied.
class Int32Span {
 public:
  Int32Span(nb::handle object, const char* name);
  std::span<const int32_t> get() const { return span_; }

 private:
  Array array_;
  std::vector<int32_t> copy_;
  std::span<const int32_t> span_;
};

// An int32 or int64 [count] or [rows, count] argument: read in place if its rows are contiguous,
// otherwise copied.
class Indices {
 public:
  // form: "[rows, count]"
  Indices(nb::handle object, const char* name, int ndim, const char* form);
  IndexPointer data() const { return data_; }
  IndexSpan get() const { return {data_, static_cast<size_t>(array_.axis(0).size)}; }  // of [count]
  int64_t row_stride() const { return row_stride_; }  // for [rows, count]
  const Array& array() const { return array_; }

 private:
  Array array_;
  std::vector<int64_t> copy_;
  IndexPointer data_;
  int64_t row_stride_ = 0;
};

// repr() of an argument for an error text, cut to some hundred characters; the name of its type if
// repr() fails.
std::string Repr(nb::handle value);

// The elements of an argument that is a sequence or another iterable; TypeError if it is neither.
// `what`: "ints".
nb::list Items(nb::handle object, const char* name, const char* what);

// An int argument, or TypeError.
nb::object Index(nb::handle value, const char* name);

// An int argument; values beyond int64 become its limits, which every call rejects.
int64_t Int64(nb::handle value, const char* name);
int32_t Int32(nb::handle value, const char* name);

// A number, or TypeError; form: "a number or None".
double Double(nb::handle value, const char* name, const char* form);

// A bool argument of Python or NumPy; no other type is accepted. form: "a bool or None".
bool Bool(nb::handle value, const char* name, const char* form = "a bool");

// Whether an argument that may be one number or many is an array. NumPy's scalars and arrays
// without axes count as numbers.
bool IsArray(nb::handle object);

// The value of a float32, float16 or bfloat16 at any address.
float FloatAt(const void* element, DType dtype);

}  // namespace riffle::python
