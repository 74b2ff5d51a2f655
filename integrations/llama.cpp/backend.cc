// What llama.cpp looks for in a file libggml-cpu-*.so.
#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <string>

#include "accelerator.h"
#include "ggml_abi.h"
#include "ggml_host.h"
#include "graph_run.h"
#include "log.h"
#include "riffle/runtime.h"

namespace riffle::llama {
namespace {

// Set once, by InitVariant of the first registry, before a backend is made.
constinit Host host;
using InitFunction = ggml::Backend* (*)(ggml::Device*, const char* params);
constinit InitFunction init_neighbor_backend = nullptr;
constinit std::atomic<GraphRun::Compute> neighbor_compute = nullptr;

// The memory of the last run, for the next one. Contexts may run graphs at the same time.
constinit std::atomic<GraphRun*> spare_run = nullptr;

int ComputeGraph(ggml::Backend* backend, ggml::Graph* graph) {
  std::unique_ptr<GraphRun> run(spare_run.exchange(nullptr, std::memory_order_acquire));
  if (run == nullptr) {
    run.reset(new (std::nothrow) GraphRun);
  }
  const GraphRun::Compute compute = neighbor_compute.load(std::memory_order_acquire);
  if (run == nullptr) {
    return compute(backend, graph);
  }
  const int status = run->Run(host, compute, backend, graph);
  run.reset(spare_run.exchange(run.release(), std::memory_order_acq_rel));
  return status;
}

ggml::Backend* InitBackend(ggml::Device* device, const char* params) {
  ggml::Backend* backend = init_neighbor_backend(device, params);
  // If `device` is not where ggml_abi.h has it, the backend has another layout: leave it alone.
  if (backend != nullptr && backend->device == device &&
      backend->functions.graph_compute != nullptr &&
      backend->functions.graph_compute != ComputeGraph) {
    // One function serves all backends of the neighbour.
    neighbor_compute.store(backend->functions.graph_compute, std::memory_order_release);
    backend->functions.graph_compute = ComputeGraph;
  }
  return backend;
}

// What ggml would load if this file were not there, and whether its version is known.
struct Surroundings {
  Neighbor neighbor;
  void* ggml = nullptr;  // where there is no neighbour: libggml-base of a host without variants
  std::optional<Host> host;
};

Surroundings FindSurroundings() {
  Surroundings around;
  around.neighbor = FindNeighbor();
  around.ggml = around.neighbor.handle == nullptr ? FindLoadedGgml() : nullptr;
  if (void* library = around.ggml != nullptr ? around.ggml : around.neighbor.handle) {
    around.host = FindHost(library);
  }
  return around;
}

int Score() {
  if (TurnedOff()) {
    return 0;
  }
  const Surroundings around = FindSurroundings();
  for (void* library : {around.neighbor.handle, around.ggml}) {
    if (library != nullptr) {
      dlclose(library);
    }
  }
  return around.host ? around.neighbor.score + 1 : 0;
}

// The neighbour's registry, whose device makes backends with attention by Riffle if it is known.
ggml::Registry* InitVariant(const Surroundings& around) {
  ggml::Registry* const registry = InitNeighbor(around.neighbor);
  if (registry == nullptr || !around.host || TurnedOff()) {
    return registry;
  }
  ggml::Device* const device = KnownDevice(*registry);
  if (device == nullptr) {
    return registry;
  }
  if (device->functions.init_backend != InitBackend) {
    StayLoaded();
    host = *around.host;
    init_neighbor_backend = device->functions.init_backend;
    device->functions.init_backend = InitBackend;
  }
  Log("attention by Riffle " + std::string(Version()) + " (" + Target() + "), all else by " +
      around.neighbor.path);
  return registry;
}

ggml::Registry* Init() {
  const Surroundings around = FindSurroundings();
  if (around.neighbor.handle != nullptr) {
    return InitVariant(around);
  }
  if (around.ggml == nullptr) {
    Warn("not used: no other libggml-cpu-*.so is beside this file, and no ggml is loaded");
    return nullptr;
  }
  if (!around.host || TurnedOff()) {
    return nullptr;
  }
  StayLoaded();
  Log("a device for attention by Riffle " + std::string(Version()) + " (" + Target() +
      "), beside that of the CPU");
  return &AcceleratorRegistry(*around.host);
}

}  // namespace
}  // namespace riffle::llama

#define RIFFLE_LLAMA_EXPORT extern "C" __attribute__((visibility("default")))

RIFFLE_LLAMA_EXPORT const char* riffle_ggml_version() { return riffle::Version().data(); }

RIFFLE_LLAMA_EXPORT int ggml_backend_score() noexcept {
  try {
    return riffle::llama::Score();
  } catch (...) {
    return 0;
  }
}

RIFFLE_LLAMA_EXPORT riffle::llama::ggml::Registry* ggml_backend_init() noexcept {
  try {
    return riffle::llama::Init();
  } catch (...) {
    return nullptr;
  }
}
