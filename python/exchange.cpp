#include "exchange.h"

namespace riffle::python {
namespace {

nb::dlpack::dtype DLPackDType(Element element) {
  using Code = nb::dlpack::dtype_code;
  const Code code = element == Element::kBF16                              ? Code::Bfloat
                    : element == Element::kI32 || element == Element::kI64 ? Code::Int
                                                                           : Code::Float;
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(SizeOf(element) * 8), 1};
}

// `kind` is the name of a built-in exception.
void SetError(void*, const char* kind, const char* message) {
  const nb::object type = nb::getattr(nb::module_::import_("builtins"), kind, nb::none());
  PyErr_SetString(type.is_none() ? PyExc_RuntimeError : type.ptr(), message);
}

const DLPackExchangeApi* FindTorchExchangeApi() {
  const nb::object type = nb::module_::import_("torch").attr("Tensor");
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    return nullptr;
  }
  const auto* api = static_cast<const DLPackExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->version[0] != 1) {
    api = api->previous;
  }
  return api != nullptr && api->tensor_from_object != nullptr ? api : nullptr;
}

}  // namespace

const DLPackExchangeApi* TorchExchangeApi() {
  // No static of C++: its guard and the GIL could wait for each other.
  static const DLPackExchangeApi* api = nullptr;
  static bool found = false;
  if (!found) {
    api = FindTorchExchangeApi();
    found = true;
  }
  return api;
}

nb::object NewTensor(const DLPackExchangeApi& api, Element element, std::span<const int64_t> shape,
                     void** data) {
  nb::dlpack::dltensor prototype;
  prototype.device = {nb::device::cpu::value, 0};
  prototype.ndim = static_cast<int32_t>(shape.size());
  prototype.dtype = DLPackDType(element);
  prototype.shape = const_cast<int64_t*>(shape.data());
  DLManagedTensorVersioned* tensor = nullptr;
  void* object = nullptr;
  if (api.allocate(&prototype, &tensor, nullptr, SetError) != 0) {
    nb::raise_python_error();
  }
  *data = tensor->tensor.data;
  if (api.object_from_managed(tensor, &object) != 0) {
    nb::raise_python_error();
  }
  return nb::steal(static_cast<PyObject*>(object));
}

}  // namespace riffle::python
