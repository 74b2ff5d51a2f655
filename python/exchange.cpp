#include "exchange.h"

#include <algorithm>
#include <type_traits>

#include "array.h"
#include "loaded_library.h"

namespace riffle::python {
namespace {

constexpr size_t kMaxTensorAxes = 16;

// Functions of PyTorch's stable C ABI (torch/csrc/stable, shim.h), which create a tensor in half
// the time of DLPack. PyTorch has all of them since 2.14. They return 0 on success.
struct TorchShim {
  int32_t (*empty_strided)(int64_t ndim, const int64_t* sizes, const int64_t* strides,
                           int32_t dtype, int32_t device_type, int32_t device_index, void** tensor);
  int32_t (*data_ptr)(void* tensor, void** data);
  int32_t (*to_pyobject)(void* tensor, void* type, void** object);
  int32_t (*release)(void* tensor);

  bool Find() {
    // The library is loaded already, as PyTorch has been imported; it is looked up, never linked.
    const LoadedLibrary library("torch_cpu");
    const auto find = [&library](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(library.Find(name));
      return function != nullptr;
    };
    return find(empty_strided, "aoti_torch_empty_strided") &&
           find(data_ptr, "aoti_torch_get_data_ptr") &&
           find(to_pyobject, "torch_tensor_to_pyobject") &&
           find(release, "aoti_torch_delete_tensor_object");
  }
};

const TorchShim* FindTorchShim() {
  static TorchShim shim;  // under the GIL, as in TorchExchangeApi
  static bool looked = false;
  static bool found = false;
  if (!looked) {
    found = shim.Find();
    looked = true;
  }
  return found ? &shim : nullptr;
}

// The numbers of c10::ScalarType, which the ABI fixes.
int32_t ScalarType(Element element) {
  switch (element) {
    case Element::kU8:
      return 0;
    case Element::kI8:
      return 1;
    case Element::kI16:
      return 2;
    case Element::kI32:
      return 3;
    case Element::kI64:
    case Element::kOther:
      return 4;
    case Element::kF16:
      return 5;
    case Element::kF32:
      return 6;
    case Element::kF64:
      return 7;
    case Element::kBool:
      return 11;
    case Element::kBF16:
      return 15;
    case Element::kU16:
      return 27;
    case Element::kU32:
      return 28;
    case Element::kU64:
      return 29;
    case Element::kE5M2:
      return 23;
    case Element::kE4M3:
      return 24;
    case Element::kE8M0:
      return 44;
  }
  return 4;
}

nb::object NewTensorByShim(const TorchShim& shim, Element element, std::span<const int64_t> shape,
                           void** data) {
  int64_t strides[kMaxTensorAxes];
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  void* tensor = nullptr;
  void* object = nullptr;
  if (shim.empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides,
                         ScalarType(element), 0, 0, &tensor) != 0) {
    return {};
  }
  const bool made =
      shim.data_ptr(tensor, data) == 0 && shim.to_pyobject(tensor, nullptr, &object) == 0;
  shim.release(tensor);
  return made ? nb::steal(static_cast<PyObject*>(object)) : nb::object();
}

nb::dlpack::dtype DLPackDType(Element element) {
  using Code = nb::dlpack::dtype_code;
  Code code = Code::Float;
  switch (element) {
    case Element::kBF16:
      code = Code::Bfloat;
      break;
    case Element::kBool:
      code = Code::Bool;
      break;
    case Element::kI8:
    case Element::kI16:
    case Element::kI32:
    case Element::kI64:
      code = Code::Int;
      break;
    case Element::kU8:
    case Element::kU16:
    case Element::kU32:
    case Element::kU64:
      code = Code::UInt;
      break;
    default:
      break;
  }
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(SizeOf(element) * 8), 1};
}

void IgnoreError(void*, const char*, const char*) {}

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
  // Not a C++ static with an initialiser: its guard and the GIL could deadlock.
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
  if (const TorchShim* shim = FindTorchShim(); shim != nullptr && shape.size() <= kMaxTensorAxes) {
    if (nb::object tensor = NewTensorByShim(*shim, element, shape, data); tensor.is_valid()) {
      return tensor;
    }
    PyErr_Clear();
  }
  nb::dlpack::dltensor prototype;
  prototype.device = {nb::device::cpu::value, 0};
  prototype.ndim = static_cast<int32_t>(shape.size());
  prototype.dtype = DLPackDType(element);
  prototype.shape = const_cast<int64_t*>(shape.data());
  DLManagedTensorVersioned* tensor = nullptr;
  void* object = nullptr;
  if (api.allocate(&prototype, &tensor, nullptr, IgnoreError) != 0) {
    PyErr_Clear();  // PyTorch's text includes its C++ stack
    ThrowMemoryError("no memory for a result of shape " + ShapeText(shape) + " and dtype " +
                     Name(element));
  }
  *data = tensor->tensor.data;
  if (api.object_from_managed(tensor, &object) != 0) {
    nb::raise_python_error();
  }
  return nb::steal(static_cast<PyObject*>(object));
}

}  // namespace riffle::python
