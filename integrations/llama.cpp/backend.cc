// What llama.cpp looks for in a file libggml-cpu-*.so.
#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <string>

#include "ggml_abi.h"
#include "ggml_host.h"
#include "graph_run.h"
#include "log.h"
#include "riffle/runtime.h"

namespace riffle::llama {
namespace {

// Set once, by InitBackend of the first registry, before a backend is made.
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
  if (backend != nullptr && backend->functions.graph_compute != nullptr &&
      backend->functions.graph_compute != ComputeGraph) {
    // One function serves all backends of the neighbour.
    neighbor_compute.store(backend->functions.graph_compute, std::memory_order_release);
    backend->functions.graph_compute = ComputeGraph;
  }
  return backend;
}

int Score() {
  if (TurnedOff()) {
    return 0;
  }
  const Neighbor neighbor = FindNeighbor();
  if (neighbor.handle == nullptr) {
    return 0;
  }
  const bool known = FindHost(neighbor).has_value();
  dlclose(neighbor.handle);
  return known ? neighbor.score + 1 : 0;
}

// The neighbour's registry, whose device makes backends with attention by Riffle if it is known.
ggml::Registry* Init() {
  const Neighbor neighbor = FindNeighbor();
  if (neighbor.handle == nullptr) {
    Warn("not used: there is no other libggml-cpu-*.so beside this file");
    return nullptr;
  }
  const std::optional<Host> found = FindHost(neighbor);
  ggml::Registry* const registry = InitNeighbor(neighbor);
  if (registry == nullptr || !found || TurnedOff() || !KnowsApi(*registry) ||
      registry->functions.get_device_count(registry) == 0) {
    return registry;
  }
  ggml::Device* const device = registry->functions.get_device(registry, 0);
  if (device->functions.init_backend != InitBackend) {
    StayLoaded();
    host = *found;
    init_neighbor_backend = device->functions.init_backend;
    device->functions.init_backend = InitBackend;
  }
  Log("attention by Riffle " + std::string(Version()) + " (" + Target() + "), all else by " +
      neighbor.path);
  return registry;
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
