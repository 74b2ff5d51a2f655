// What calls do with their arguments: the checks they share, numbers, and int32 lists.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "array.h"
#include "riffle/types.h"

namespace riffle::python {

// The checks that calls share; each throws with the array's name, what it is and what it must be.
DType FloatingDType(const Array& x);                         // TypeError unless f32, f16 or bf16
DType SelectionDType(const Array& x);                        // any number; bool counts as uint8
void CheckElement(const Array& x, Element element);          // TypeError
void CheckAxes(const Array& x, int ndim, const char* form);  // ValueError; form: "[rows, n]"
void CheckLastAxisContiguous(const Array& x);                // ValueError
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

// An int argument, or TypeError.
nb::object Index(nb::handle value, const char* name);

// An int argument; values beyond int64 come out as its limits, which no argument admits.
int64_t Int64(nb::handle value, const char* name);
int32_t Int32(nb::handle value, const char* name);

// A bool argument, Python's or NumPy's; nothing else counts as one.
bool Bool(nb::handle value, const char* name);

// Whether an argument that may be one number or many is an array. Scalars of NumPy and arrays
// without axes are numbers.
bool IsArray(nb::handle object);

// The value of a float32, float16 or bfloat16 at any address.
float FloatAt(const void* element, DType dtype);

}  // namespace riffle::python
