#include "frameworks.h"

#include <nanobind/ndarray.h>

#include <iterator>

#include "kernel_scope.h"

namespace riffle::python {
namespace {

constexpr const char* kElementNames[kElements] = {
    "float32", "float16",       "bfloat16",    "int32",         "int64",  "float64",
    "int8",    "uint8",         "int16",       "uint16",        "uint32", "uint64",
    "bool",    "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"};

// An imported module, or null: asking for JAX must not import JAX.
nb::object ImportedModule(const char* name) {
  PyObject* const modules = PyImport_GetModuleDict();
  return nb::borrow(PyDict_GetItemString(modules, name));
}

bool IsInstance(nb::handle object, const char* module_name, const char* outer, const char* type) {
  const nb::object module = ImportedModule(module_name);
  if (!module.is_valid()) {
    return false;
  }
  const nb::object scope = outer != nullptr ? nb::getattr(module, outer, nb::none()) : module;
  const nb::object wanted = nb::getattr(scope, type, nb::none());
  return !wanted.is_none() && nb::isinstance(object, wanted);
}

Framework FindFramework(nb::handle object) {
  if (IsInstance(object, "numpy.ma", nullptr, "MaskedArray")) {
    return Framework::kMasked;
  }
  if (nb::isinstance(object, known().numpy_array)) {
    return Framework::kNumPy;
  }
  if (IsInstance(object, "torch", nullptr, "Tensor")) {
    return Framework::kTorch;
  }
  if (IsInstance(object, "jax", "core", "Tracer")) {
    return Framework::kJaxTracer;
  }
  if (IsInstance(object, "jax", nullptr, "Array")) {
    return Framework::kJax;
  }
  return nb::ndarray_check(object) ? Framework::kOther : Framework::kNone;
}

}  // namespace

Known::Known() {
  const nb::module_ numpy = nb::module_::import_("numpy");
  numpy_array = numpy.attr("ndarray");
  numpy_empty = numpy.attr("empty");
  numpy_bool = numpy.attr("bool_");
  numpy_uint16 = numpy.attr("dtype")("uint16");
  numpy_uint8 = numpy.attr("dtype")("uint8");
  for (int i = 0; i < kElements; ++i) {
    if (!IsMlDType(static_cast<Element>(i))) {
      numpy_dtypes[i] = numpy.attr("dtype")(kElementNames[i]);
    }
  }
}

nb::handle Known::Jax() {
  if (!jax.is_valid()) {
    jax = Checked(SleepAtExit([] { return PyImport_ImportModule("riffle._jax"); }));
  }
  return jax;
}

namespace {
Known* the_known = nullptr;  // never destroyed: the interpreter may end before it
}  // namespace

void LoadKnown() { the_known = new Known; }
Known& known() { return *the_known; }

nb::object Checked(PyObject* result) {
  if (result == nullptr) {
    nb::raise_python_error();
  }
  return nb::steal(result);
}

nb::object Get(nb::handle object, const nb::str& name) {
  return Checked(SleepAtExit([&] { return PyObject_GetAttr(object.ptr(), name.ptr()); }));
}

nb::object CallMethod(nb::handle object, const nb::str& name, nb::handle argument) {
  PyObject* arguments[] = {object.ptr(), argument.ptr()};
  return Checked(SleepAtExit([&] {
    return PyObject_VectorcallMethod(name.ptr(), arguments, argument.is_valid() ? 2 : 1, nullptr);
  }));
}

nb::object Call(nb::handle function, std::span<PyObject* const> arguments) {
  return Checked(SleepAtExit([&] {
    return PyObject_Vectorcall(function.ptr(), arguments.data(), arguments.size(), nullptr);
  }));
}

bool IsTrue(nb::handle object) {
  const int truth = SleepAtExit([&] { return PyObject_IsTrue(object.ptr()); });
  if (truth < 0) {
    nb::raise_python_error();
  }
  return truth != 0;
}

std::string Text(nb::handle object) {
  return nb::cast<std::string>(Checked(SleepAtExit([&] { return PyObject_Str(object.ptr()); })));
}

void ThrowValueError(const std::string& text) { throw nb::value_error(text.c_str()); }
void ThrowTypeError(const std::string& text) { throw nb::type_error(text.c_str()); }
void ThrowMemoryError(const std::string& text) {
  PyErr_SetString(PyExc_MemoryError, text.c_str());
  nb::raise_python_error();
}

nb::handle NumPyDType(Element element) {
  nb::object& dtype = known().numpy_dtypes[static_cast<int>(element)];
  if (!dtype.is_valid()) {
    dtype = nb::module_::import_("numpy").attr("dtype")(
        nb::module_::import_("ml_dtypes").attr(kElementNames[static_cast<int>(element)]));
  }
  return dtype;
}

nb::handle TorchDType(Element element) {
  nb::object& dtype = known().torch_dtypes[static_cast<int>(element)];
  if (!dtype.is_valid()) {
    dtype = nb::module_::import_("torch").attr(kElementNames[static_cast<int>(element)]);
  }
  return dtype;
}

Element ElementOfNumPy(nb::handle dtype) {
  for (int i = 0; i < kElements; ++i) {
    if (known().numpy_dtypes[i].is(dtype)) {
      return static_cast<Element>(i);
    }
  }
  const Element element = ElementNamed(Text(dtype));
  if (!IsMlDType(element)) {
    return Element::kOther;
  }
  known().numpy_dtypes[static_cast<int>(element)] = nb::borrow(dtype);
  return element;
}

Element ElementNamed(std::string_view name) {
  constexpr std::string_view kTorch = "torch.";
  if (name.starts_with(kTorch)) {
    name.remove_prefix(kTorch.size());
  }
  for (int i = 0; i < kElements; ++i) {
    if (name == kElementNames[i]) {
      return static_cast<Element>(i);
    }
  }
  return Element::kOther;
}

Element ElementOf(DType dtype) {
  return dtype == DType::kF32   ? Element::kF32
         : dtype == DType::kF16 ? Element::kF16
                                : Element::kBF16;
}

int64_t SizeOf(Element element) {
  switch (element) {
    case Element::kI8:
    case Element::kU8:
    case Element::kBool:
    case Element::kE4M3:
    case Element::kE5M2:
    case Element::kE8M0:
      return 1;
    case Element::kF16:
    case Element::kBF16:
    case Element::kI16:
    case Element::kU16:
      return 2;
    case Element::kF64:
    case Element::kI64:
    case Element::kU64:
      return 8;
    default:
      return 4;
  }
}

const char* Name(Element element) { return kElementNames[static_cast<int>(element)]; }

Framework FrameworkOf(nb::handle object) {
  constexpr size_t kMaxTypes = 64;  // a bound, for programs that keep creating array types
  PyTypeObject* const type = Py_TYPE(object.ptr());
  for (const auto& [known_type, framework] : known().types) {
    if (known_type == type) {
      return framework;
    }
  }
  const Framework framework = FindFramework(object);
  if (framework != Framework::kNone && known().types.size() < kMaxTypes) {
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    known().types.emplace_back(type, framework);
  }
  return framework;
}

}  // namespace riffle::python
