// DLPack's C exchange API (dlpack 1.2, `__dlpack_c_exchange_api__`): reads and makes tensors
// without a Python call. PyTorch has it since 2.10.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>

#include "frameworks.h"

namespace riffle::python {

// The part of dlpack.h's ABI that is used here.
struct DLManagedTensorVersioned {
  uint32_t version[2];
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned* self);
  uint64_t flags;
  nb::dlpack::dltensor tensor;
};

struct DLPackExchangeApi {
  uint32_t version[2];  // major, minor
  DLPackExchangeApi* previous;
  int (*allocate)(nb::dlpack::dltensor* prototype, DLManagedTensorVersioned** out,
                  void* error_context,
                  void (*set_error)(void* error_context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, DLManagedTensorVersioned** out);
  int (*object_from_managed)(DLManagedTensorVersioned* tensor, void** object);
  int (*tensor_from_object)(void* object, nb::dlpack::dltensor* out);  // may be null
};

// PyTorch's API, or null if PyTorch is too old. Pre: PyTorch has been imported.
const DLPackExchangeApi* TorchExchangeApi();

// A new row-major tensor on the CPU.
nb::object NewTensor(const DLPackExchangeApi& api, Element element, std::span<const int64_t> shape,
                     void** data);

}  // namespace riffle::python
