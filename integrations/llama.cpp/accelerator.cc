#include "accelerator.h"

#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <string_view>

#include "growing_pool.h"
#include "operation.h"
#include "riffle/riffle.h"

namespace riffle::llama {
namespace {

constexpr const char* kName = "Riffle";
constexpr const char* kDescription = "attention on CPUs by Riffle";

constinit Host known_host;

struct Context {
  OperationRunner runner;
  int threads = 0;  // 0: those of Riffle's default pool
};

bool IsFreeOfWork(const ggml::Tensor& tensor) {
  return std::ranges::count(known_host.free_of_work, tensor.op) != 0;
}

Context& ContextOf(ggml::Backend* backend) { return *static_cast<Context*>(backend->context); }

// If ggml uses OpenMP, calls run on its threads, which have just computed other nodes.
void ChooseOpenMpThreads() {
  void* openmp = dlopen("libgomp.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (openmp != nullptr) {
    SetParallelRegion(reinterpret_cast<ParallelRegion>(dlsym(openmp, "GOMP_parallel")));
  }
}

constinit GrowingPool default_pool(ChooseOpenMpThreads);

int ComputeGraph(ggml::Backend* backend, ggml::Graph* graph) {
  Context& context = ContextOf(backend);
  try {
    default_pool.Reserve(context.threads);
    // This graph has only the nodes between two graphs of the CPU's; masks change from run to run.
    context.runner.Clear();
    int status = ggml::kStatusSuccess;
    const int count = known_host.graph_nodes(graph);
    for (int i = 0; i < count && status == ggml::kStatusSuccess; ++i) {
      const ggml::Tensor& tensor = *known_host.graph_node(graph, i);
      if (IsFreeOfWork(tensor) || (tensor.flags & ggml::kFlagCompute) == 0) {
        continue;
      }
      const std::optional<Operation> operation = ReadOperation(known_host, tensor);
      status = operation ? context.runner.Run(*operation) : ggml::kStatusFailed;
    }
    return status;
  } catch (...) {
    return ggml::kStatusAllocFailed;
  }
}

bool SupportsOp(ggml::Device*, const ggml::Tensor* tensor) {
  try {
    return IsFreeOfWork(*tensor) || ReadOperation(known_host, *tensor).has_value();
  } catch (...) {
    return false;
  }
}

void SetThreads(ggml::Backend* backend, int threads) { ContextOf(backend).threads = threads; }

void FreeBackend(ggml::Backend* backend) {
  delete &ContextOf(backend);
  delete backend;
}

ggml::Backend* InitBackend(ggml::Device* device, const char*) {
  static constinit unsigned char guid[16] = {'r', 'i', 'f', 'f', 'l', 'e', ' ', 'a',
                                             't', 't', 'e', 'n', 't', 'i', 'o', 'n'};
  std::unique_ptr<Context> context(new (std::nothrow) Context);
  auto* backend = context != nullptr ? new (std::nothrow) ggml::Backend{} : nullptr;
  if (backend != nullptr) {
    backend->guid = guid;
    backend->functions.get_name = [](ggml::Backend*) { return kName; };
    backend->functions.free = FreeBackend;
    backend->functions.graph_compute = ComputeGraph;
    backend->device = device;
    backend->context = context.release();
  }
  return backend;
}

ggml::Device MakeDevice(ggml::Registry* registry) {
  ggml::Device device = {};
  device.registry = registry;
  device.functions.get_name = [](ggml::Device*) { return kName; };
  device.functions.get_description = [](ggml::Device*) { return kDescription; };
  device.functions.get_memory = [](ggml::Device*, size_t* available, size_t* total) {
    *available = *total = 0;  // none of its own
  };
  device.functions.get_type = [](ggml::Device*) { return ggml::kAccelerator; };
  device.functions.get_props = [](ggml::Device*, ggml::DeviceProperties* properties) {
    *properties = {kName, kDescription, 0,     0,   ggml::kAccelerator, nullptr, false,
                   false, true,         false, true};
  };
  device.functions.init_backend = InitBackend;
  device.functions.get_buffer_type = [](ggml::Device*) { return known_host.cpu_buffer_type(); };
  device.functions.buffer_from_host_ptr = [](ggml::Device*, void* data, size_t bytes, size_t) {
    return known_host.cpu_buffer_from_ptr(data, bytes);
  };
  device.functions.supports_op = SupportsOp;
  device.functions.supports_buft = [](ggml::Device*, ggml::BufferType* type) {
    return known_host.is_host(type);
  };
  return device;
}

void* FunctionByName(ggml::Registry*, const char* name) {
  return std::string_view(name) == "ggml_backend_set_n_threads"
             ? reinterpret_cast<void*>(SetThreads)
             : nullptr;
}

}  // namespace

ggml::Registry& AcceleratorRegistry(const Host& host) {
  static constinit ggml::Registry registry = {};
  static constinit ggml::Device device = {};
  known_host = host;
  device = MakeDevice(&registry);
  registry.api_version = kApiVersion;
  registry.functions.get_name = [](ggml::Registry*) { return kName; };
  registry.functions.get_device_count = [](ggml::Registry*) { return size_t{1}; };
  registry.functions.get_device = [](ggml::Registry*, size_t) { return &device; };
  registry.functions.get_proc_address = FunctionByName;
  return registry;
}

}  // namespace riffle::llama
