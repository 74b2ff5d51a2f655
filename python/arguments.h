// What calls do with their arguments: the checks they share, numbers, and int32 lists.
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

// The checks that calls share; each throws with the array's name, what it is and what it must be.
DType FloatingDType(const Array& x);   // TypeError unless f32, f16 or bf16
DType MaskDType(const Array& x);       // likewise, or bool, which is u8
DType SelectionDType(const Array& x);  // any number; bool counts as uint8
// The dtype of x, TypeError unless it is one of `accepted`, which `text` lists for the error.
DType DTypeAmong(const Array& x, std::initializer_list<DType> accepted, const char* text);
void CheckElement(const Array& x, Element element);               // TypeError
void CheckAxes(const Array& x, int ndim, const char* form);       // ValueError; form: "[rows, n]"
void CheckLastAxisContiguous(const Array& x);                     // ValueError
void CheckShape(const Array& x, std::span<const int64_t> shape);  // ValueError

// The axes [begin, end) of x merged into as few as their strides allow, those of size 1 left out.
// Returns how many; row-major order is kept. No axis of size 0 may be among them.
int MergeAxes(const Array& x, int begin, int end, Axis* merged);

// An int32 [count] argument: as it stands where it is contiguous, else copied.
class Int32Span {
 public:
  Int32Span(nb::handle object, const char* name);
  std::span<const int32_t> get() const { return span_; }

 private:
  Array array_;
  std::vector<int32_t> copy_;
  std::span<const int32_t> span_;
};

// An int32 or int64 [count] or [rows, count] argument: in place where its rows are contiguous, else
// copied.
class Indices {
 public:
  // form: "[rows, count]"
  Indices(nb::handle object, const char* name, int ndim, const char* form);
  IndexPointer data() const { return data_; }
  IndexSpan get() const { return {data_, static_cast<size_t>(array_.axis(0).size)}; }  // of [count]
  int64_t row_stride() const { return row_stride_; }  // of [rows, count]
  const Array& array() const { return array_; }

 private:
  Array array_;
  std::vector<int64_t> copy_;
  IndexPointer data_;
  int64_t row_stride_ = 0;
};

// repr() of an argument for the text of an error, at most some hundred characters; where it has
// none, what type it is of.
std::string Repr(nb::handle value);

// The elements of an argument that is a sequence, or anything else to iterate over; TypeError if it
// is not. `what`: "ints".
nb::list Items(nb::handle object, const char* name, const char* what);

// An int argument, or TypeError.
nb::object Index(nb::handle value, const char* name);

// An int argument; values beyond int64 come out as its limits, which no argument admits.
int64_t Int64(nb::handle value, const char* name);
int32_t Int32(nb::handle value, const char* name);

// A number, or TypeError; form: "a number or None".
double Double(nb::handle value, const char* name, const char* form);

// A bool argument, Python's or NumPy's; nothing else counts as one. form: "a bool or None".
bool Bool(nb::handle value, const char* name, const char* form = "a bool");

// Whether an argument that may be one number or many is an array. Scalars of NumPy and arrays
// without axes are numbers.
bool IsArray(nb::handle object);

// The value of a float32, float16 or bfloat16 at any address.
float FloatAt(const void* element, DType dtype);

}  // namespace riffle::python
