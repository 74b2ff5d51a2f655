#include "array.h"

#include <utility>

#include "exchange.h"

namespace riffle::python {
namespace {

[[noreturn]] void ThrowReadOnly(const std::string& name) {
  ThrowValueError(name + " is read-only; results cannot be written to it");
}

[[noreturn]] void ThrowNotOnCpu(const std::string& name, const std::string& place) {
  ThrowValueError(name + " is on " + place + "; riffle reads memory of the CPU");
}

int CheckedNdim(size_t ndim, const std::string& name) {
  if (ndim > static_cast<size_t>(kMaxAxes)) {
    ThrowValueError(name + " has " + std::to_string(ndim) + " axes; at most " +
                    std::to_string(kMaxAxes) + " are possible");
  }
  return static_cast<int>(ndim);
}

Element IntegerOf(int64_t bits, bool is_signed) {
  switch (bits) {
    case 8:
      return is_signed ? Element::kI8 : Element::kU8;
    case 16:
      return is_signed ? Element::kI16 : Element::kU16;
    case 32:
      return is_signed ? Element::kI32 : Element::kU32;
    case 64:
      return is_signed ? Element::kI64 : Element::kU64;
    default:
      return Element::kOther;
  }
}

// The element type that a buffer's format names, in the codes of the struct module.
Element ElementOfFormat(const char* format, int64_t size) {
  if (*format == '@' || *format == '=' || *format == '<') {
    ++format;
  }
  if (format[0] == '\0' || format[1] != '\0') {
    return Element::kOther;
  }
  switch (format[0]) {
    case 'e':
      return Element::kF16;
    case 'f':
      return Element::kF32;
    case 'd':
      return Element::kF64;
    case '?':
      return Element::kBool;
    case 'b':
    case 'h':
    case 'i':
    case 'l':
    case 'q':
      return IntegerOf(size * 8, /*is_signed=*/true);
    case 'B':
    case 'H':
    case 'I':
    case 'L':
    case 'Q':
      return IntegerOf(size * 8, /*is_signed=*/false);
    default:
      return Element::kOther;
  }
}

Element ElementOfDLPack(nb::dlpack::dtype dtype) {
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  if (dtype.lanes != 1) {
    return Element::kOther;
  }
  switch (code) {
    case nb::dlpack::dtype_code::Float:
      return dtype.bits == 32   ? Element::kF32
             : dtype.bits == 16 ? Element::kF16
             : dtype.bits == 64 ? Element::kF64
                                : Element::kOther;
    case nb::dlpack::dtype_code::Bfloat:
      return dtype.bits == 16 ? Element::kBF16 : Element::kOther;
    case nb::dlpack::dtype_code::Int:
      return IntegerOf(dtype.bits, /*is_signed=*/true);
    case nb::dlpack::dtype_code::UInt:
      return IntegerOf(dtype.bits, /*is_signed=*/false);
    case nb::dlpack::dtype_code::Bool:
      return dtype.bits == 8 ? Element::kBool : Element::kOther;
    default:
      break;
  }
  // 8-bit floats of DLPack 1.1, which nanobind does not name.
  switch (dtype.code) {
    case 10:
      return Element::kE4M3;
    case 12:
      return Element::kE5M2;
    case 14:
      return Element::kE8M0;
    default:
      return Element::kOther;
  }
}

}  // namespace

Array::Array(nb::handle object, const char* name, Access access)
    : name_(name), object_(nb::borrow(object)), framework_(FrameworkOf(object)) {
  switch (framework_) {
    case Framework::kNumPy:
      ReadNumPy(object_, access);
      break;
    case Framework::kMasked:
      ThrowTypeError(
          std::string(name) +
          " is a masked array, whose mask riffle would ignore: fill it (filled), or pass "
          "its data");
    case Framework::kTorch:
      ReadTorch(access);
      break;
    case Framework::kJax:
      if (access == Access::kWrite) {
        ThrowTypeError(std::string(name) + " is a JAX array, which is immutable; leave out= away");
      }
      ReadJax(access);
      break;
    case Framework::kOther:
      ReadDLPack(object_, access);
      break;
    case Framework::kJaxTracer:
      ThrowTypeError(std::string(name) +
                     " is a JAX tracer, which has no memory to read: call riffle outside jax.jit");
    case Framework::kNone:
      ThrowTypeError(
          std::string(name) + " must be an array of NumPy, PyTorch (CPU), JAX (CPU) or " +
          "another DLPack producer, not " + Text(nb::getattr(object.type(), "__name__")));
  }
}

void Array::ReadBuffer(nb::handle object, Access access) {
  const int flags = PyBUF_STRIDES | PyBUF_FORMAT | (access == Access::kWrite ? PyBUF_WRITABLE : 0);
  Py_buffer& buffer = buffer_.view;
  if (PyObject_GetBuffer(object.ptr(), &buffer, flags) != 0) {
    nb::raise_python_error();
  }
  ndim_ = CheckedNdim(static_cast<size_t>(buffer.ndim), name_);
  element_ =
      buffer.format != nullptr ? ElementOfFormat(buffer.format, buffer.itemsize) : Element::kOther;
  data_ = buffer.buf;
  const int64_t size = buffer.itemsize;
  for (int i = 0; i < ndim_; ++i) {
    axes_[i] = {buffer.shape[i], 0};
    // Strides of other elements do not matter, as no call accepts them; their size may be 0.
    if (buffer.shape[i] > 1 && element_ != Element::kOther) {
      if (buffer.strides[i] % size != 0) {
        ThrowValueError(std::string(name_) + "'s axis " + std::to_string(i) + " has a stride of " +
                        std::to_string(buffer.strides[i]) + " bytes, not a multiple of the " +
                        std::to_string(size) + " of an element; make it contiguous");
      }
      axes_[i].stride = buffer.strides[i] / size;
    }
  }
}

void Array::ReadNumPy(nb::object array, Access access) {
  const Element element = ElementOfNumPy(Get(array, known().dtype));
  const bool viewed = IsMlDType(element);
  try {
    const nb::handle plain = SizeOf(element) == 1 ? known().numpy_uint8 : known().numpy_uint16;
    owner_ = viewed ? CallMethod(array, known().view, plain) : array;
    ReadBuffer(owner_, access);
  } catch (nb::python_error& error) {
    if (access == Access::kWrite && !IsTrue(array.attr("flags").attr("writeable"))) {
      ThrowReadOnly(name_);
    }
    // Dates and similar types have no buffer; the caller rejects the dtype by its name.
    if (!error.matches(PyExc_ValueError)) {
      throw;
    }
  }
  if (viewed) {
    element_ = element;
  }
}

void Array::ReadJax(Access access) {
  CallMethod(object_, known().block_until_ready);
  try {
    // Not through nanobind's call, which would end the process here if the interpreter is exiting.
    owner_ = CallMethod(object_, known().dlpack);
  } catch (nb::python_error& error) {
    if (IsMlDType(ElementNamed(DTypeName()))) {  // 8-bit floats, which JAX's DLPack may not know
      ReadNumPy(nb::module_::import_("numpy").attr("asarray")(object_), access);
      return;
    }
    PyObject* arguments[] = {object_.ptr()};
    nb::object gathered = Call(known().Jax().attr("gathered"), arguments);
    if (gathered.is_none()) {  // it is on one device
      nb::raise_from(error, PyExc_ValueError, "%s cannot be read in place", name_);
    }
    ReadNumPy(std::move(gathered), access);
    return;
  }
  ReadDLPack(owner_, access);
}

void Array::ReadTorch(Access access) {
  if (access == Access::kWrite && IsTrue(Get(object_, known().requires_grad))) {
    ThrowValueError(std::string(name_) + " requires grad; results are not differentiable");
  }
  nb::object tensor = object_;
  try {
    if (IsTrue(
            CallMethod(tensor, known().is_neg))) {  // lazily negated: memory has the opposite sign
      if (access == Access::kWrite) {
        ThrowReadOnly(name_);
      }
      owner_ = CallMethod(tensor, known().resolve_neg);
      tensor = owner_;
    }
    if (const DLPackExchangeApi* api = TorchExchangeApi()) {
      nb::dlpack::dltensor view;
      if (api->tensor_from_object(tensor.ptr(), &view) != 0) {
        nb::raise_python_error();
      }
      if (view.device.device_type != nb::device::cpu::value) {
        ThrowNotOnCpu(name_, "device " + Text(object_.attr("device")));
      }
      SetView(view);
      return;
    }
    if (!IsTrue(Get(object_, known().is_cpu))) {
      ThrowNotOnCpu(name_, "device " + Text(object_.attr("device")));
    }
    tensor = tensor.attr("detach")();  // __dlpack__ refuses what requires grad
  } catch (nb::python_error& error) {  // on another device, sparse, wrapped by functorch, ...
    const Element element = ElementNamed(DTypeName());
    if (IsMlDType(element) && SizeOf(element) == 1 && IsTrue(Get(object_, known().is_cpu))) {
      // 8-bit floats, which older releases of PyTorch do not export.
      owner_ = CallMethod(tensor, known().view, TorchDType(Element::kU8));
      ReadDLPack(owner_, access);
      element_ = element;
      return;
    }
    if (!IsTrue(Get(object_, known().is_cpu))) {
      ThrowNotOnCpu(name_, "device " + Text(object_.attr("device")));
    }
    nb::raise_from(error, PyExc_ValueError, "%s is a tensor without plain memory of the CPU",
                   name_);
  }
  ReadDLPack(tensor, access);
}

void Array::ReadDLPack(nb::handle object, Access access) {
  bool read = false;
  if (access == Access::kRead && !PyCapsule_CheckExact(object.ptr())) {
    try {  // not through nanobind's call, as in ReadJax
      owner_ = CallMethod(object, known().dlpack);
      object = owner_;
    } catch (nb::python_error&) {
      // DLPack exports read-only arrays only to callers that request a version, as nanobind does.
    }
  }
  if (access == Access::kWrite) {
    nb::ndarray<> writable;
    read = nb::try_cast(object, writable, /*convert=*/false);
    dlpack_ = nb::ndarray<nb::ro>(writable);
  } else {
    read = nb::try_cast(object, dlpack_, /*convert=*/false);
  }
  if (!read) {
    try {  // again, to get the reason
      object.attr("__dlpack__")();
    } catch (nb::python_error& error) {
      nb::raise_from(error, PyExc_ValueError, "%s cannot be %s in place", name_,
                     access == Access::kWrite ? "written" : "read");
    }
    ThrowReadOnly(name_);
  }
  nb::dlpack::dltensor view;
  view.data = const_cast<void*>(dlpack_.data());
  view.device = {dlpack_.device_type(), dlpack_.device_id()};
  view.ndim = static_cast<int32_t>(dlpack_.ndim());
  view.dtype = dlpack_.dtype();
  view.shape = const_cast<int64_t*>(dlpack_.shape_ptr());
  view.strides = const_cast<int64_t*>(dlpack_.stride_ptr());
  SetView(view);
}

void Array::SetView(const nb::dlpack::dltensor& view) {
  if (view.device.device_type != nb::device::cpu::value) {
    ThrowNotOnCpu(name_, "DLPack device (" + std::to_string(view.device.device_type) + ", " +
                             std::to_string(view.device.device_id) + ")");
  }
  element_ = ElementOfDLPack(view.dtype);
  ndim_ = CheckedNdim(static_cast<size_t>(view.ndim), name_);
  data_ = static_cast<uint8_t*>(view.data) + view.byte_offset;
  for (int i = 0; i < ndim_; ++i) {
    axes_[i] = {view.shape[i], view.strides[i]};
  }
}

bool Array::empty() const {
  for (int i = 0; i < ndim_; ++i) {
    if (axes_[i].size == 0) {
      return true;
    }
  }
  return false;
}

std::string Array::Shape() const {
  int64_t shape[kMaxAxes];
  for (int i = 0; i < ndim_; ++i) {
    shape[i] = axes_[i].size;
  }
  return ShapeText({shape, static_cast<size_t>(ndim_)});
}

std::string Array::DTypeName() const {
  const nb::object dtype = nb::getattr(object_, "dtype", nb::none());
  if (!dtype.is_none()) {
    return Text(dtype);
  }
  return element_ != Element::kOther ? Name(element_) : "unknown";
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

}  // namespace riffle::python
