// Array frameworks: which one an object is from, how each names an element type, and fast access to
// their objects. A framework is looked up only when one of its arrays comes, and never imported.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "riffle/types.h"

namespace riffle::python {

namespace nb = nanobind;

enum class Framework : uint8_t {
  kNone,    // not an array
  kMasked,  // numpy.ma's: refused, as its mask would be ignored
  kNumPy,
  kTorch,
  kJax,
  kJaxTracer,
  kOther,  // anything that exports DLPack or a buffer; its results are NumPy's
};

Framework FrameworkOf(nb::handle object);

enum class Element : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kI64,
  kF64,
  kI8,
  kU8,
  kI16,
  kU16,
  kU32,
  kU64,
  kBool,
  kE4M3,
  kE5M2,
  kE8M0,
  kOther
};
inline constexpr int kElements = static_cast<int>(Element::kOther);

const char* Name(Element element);
// Whether NumPy has the dtype only from ml_dtypes, which exports neither a buffer nor DLPack.
constexpr bool IsMlDType(Element element) {
  return element == Element::kBF16 || element == Element::kE4M3 || element == Element::kE5M2 ||
         element == Element::kE8M0;
}
// The element with the name that str(dtype) gives, with or without "torch."; otherwise kOther.
Element ElementNamed(std::string_view name);
int64_t SizeOf(Element element);
Element ElementOf(DType dtype);
// Compares by identity; kOther if none matches. NumPy's dtypes may be equal without being the same.
Element ElementOfNumPy(nb::handle dtype);
nb::handle NumPyDType(Element element);
nb::handle TorchDType(Element element);

// References that live as long as the process. With them a small call needs only a few pointer
// comparisons: each type is looked up once, in frameworks that are already imported.
struct Known {
  nb::str dtype = Intern("dtype"), is_cpu = Intern("is_cpu"), is_neg = Intern("is_neg"),
          resolve_neg = Intern("resolve_neg"), requires_grad = Intern("requires_grad"),
          view = Intern("view"), new_empty = Intern("new_empty"),
          block_until_ready = Intern("block_until_ready"), dlpack = Intern("__dlpack__");
  nb::object dtype_keyword = nb::make_tuple(dtype);  // names of keyword arguments

  nb::object numpy_array, numpy_empty, numpy_uint16, numpy_uint8, numpy_bool;
  nb::object numpy_dtypes[kElements];                      // ml_dtypes': null until an array has it
  nb::object jax;                                          // null until an array comes
  nb::object torch_dtypes[kElements];                      // null until a tensor comes
  std::vector<std::pair<PyTypeObject*, Framework>> types;  // held

  Known();
  nb::handle Jax();  // riffle._jax, which imports JAX

  static nb::str Intern(const char* text) {
    return nb::steal<nb::str>(PyUnicode_InternFromString(text));
  }
};

Known& known();
void LoadKnown();  // call it before anything else here

// Calls of Python that throw C++ exceptions, safe on threads that still run when the interpreter
// exits (see SleepAtExit). `name` is one of Known's, so that no string is made.
nb::object Checked(PyObject* result);
nb::object Get(nb::handle object, const nb::str& name);
nb::object CallMethod(nb::handle object, const nb::str& name, nb::handle argument = {});
nb::object Call(nb::handle function, std::span<PyObject* const> arguments);
bool IsTrue(nb::handle object);

// str(object). nb::str(object.attr(...)) would treat the attribute as if it were a string already.
std::string Text(nb::handle object);

[[noreturn]] void ThrowValueError(const std::string& text);
[[noreturn]] void ThrowTypeError(const std::string& text);
[[noreturn]] void ThrowMemoryError(const std::string& text);

}  // namespace riffle::python
