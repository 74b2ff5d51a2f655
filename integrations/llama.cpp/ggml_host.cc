#include "ggml_host.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <utility>
#include <vector>

#include "log.h"

namespace riffle::llama {
namespace {

namespace fs = std::filesystem;

// The versions of ggml that this file has run with. A layout that is read wrongly is a crash of
// somebody's server, so no version is added here that `make test-llama` has not run with.
constexpr std::array<std::string_view, 1> kTestedVersions = {"0.27.0"};

constexpr std::string_view kGgmlBase = "libggml-base.";

// Bytes that ggml adds to a tensor's own for its list of objects.
constexpr size_t kObjectBytes = 32;

template <typename Function>
Function* Find(void* handle, const char* name) {
  return reinterpret_cast<Function*>(dlsym(handle, name));
}

// The folder of this file and its own name there.
fs::path OwnPath() {
  Dl_info info = {};
  static const int anchor = 0;
  return dladdr(&anchor, &info) != 0 ? fs::path(info.dli_fname) : fs::path();
}

// Calls found(handle, path) for each CPU backend in the folder that can be loaded.
template <typename Found>
void ForEachNeighbor(const fs::path& own, const Found& found) {
  std::error_code error;
  fs::directory_iterator entry(own.parent_path(), error);
  std::vector<fs::path> paths;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with("libggml-cpu") && name.ends_with(".so") && name != own.filename()) {
      paths.push_back(entry->path());
    }
  }
  std::sort(paths.begin(), paths.end());  // so that equal scores do not depend on the file system
  for (const fs::path& path : paths) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      continue;
    }
    // Another copy of this integration would look for neighbours in its turn.
    if (dlsym(handle, "riffle_ggml_version") != nullptr) {
      dlclose(handle);
      continue;
    }
    found(handle, path);
  }
}

// Pre: ggml has an operation of that name. It checks no bounds.
int OpByName(const char* (*op_name)(int), std::string_view name) {
  int op = 0;
  while (name != op_name(op)) {
    ++op;
  }
  return op;
}

}  // namespace

Neighbor FindNeighbor() {
  Neighbor best;
  ForEachNeighbor(OwnPath(), [&](void* handle, const fs::path& path) {
    // libggml-cpu.so of a build without variants has no score: it is taken if nothing else is
    // there.
    const auto score_function = Find<int()>(handle, "ggml_backend_score");
    const int score = score_function != nullptr ? score_function() : 1;
    if (score > best.score && Find<void*()>(handle, "ggml_backend_init") != nullptr) {
      std::swap(best.handle, handle);
      best.path = path.string();
      best.score = score;
    }
    if (handle != nullptr) {
      dlclose(handle);
    }
  });
  return best;
}

std::optional<Host> FindHost(void* library) {
  const auto version_function = Find<const char*()>(library, "ggml_version");
  const std::string version =
      version_function != nullptr ? version_function() : "without a version";
  const auto op_name = Find<const char*(int)>(library, "ggml_op_name");
  const auto tensor_overhead = Find<size_t()>(library, "ggml_tensor_overhead");
  Host host;
  host.graph_nodes = Find<int(ggml::Graph*)>(library, "ggml_graph_n_nodes");
  host.graph_node = Find<ggml::Tensor*(ggml::Graph*, int)>(library, "ggml_graph_node");
  host.type_name = Find<const char*(int)>(library, "ggml_type_name");
  host.cpu_buffer_type = Find<ggml::BufferType*()>(library, "ggml_backend_cpu_buffer_type");
  host.cpu_buffer_from_ptr =
      Find<ggml::Buffer*(void*, size_t)>(library, "ggml_backend_cpu_buffer_from_ptr");
  host.is_host = Find<bool(ggml::BufferType*)>(library, "ggml_backend_buft_is_host");
  const bool tested =
      std::find(kTestedVersions.begin(), kTestedVersions.end(), version) != kTestedVersions.end();
  if (!tested || op_name == nullptr || host.graph_nodes == nullptr || host.graph_node == nullptr ||
      host.type_name == nullptr || host.cpu_buffer_type == nullptr ||
      host.cpu_buffer_from_ptr == nullptr || host.is_host == nullptr ||
      tensor_overhead == nullptr || tensor_overhead() != kObjectBytes + sizeof(ggml::Tensor)) {
    Warn("not used: ggml is " + version + ", and this file was tested with ggml " +
         std::string(kTestedVersions.back()) + "; llama.cpp goes on without Riffle");
    return std::nullopt;
  }
  host.flash_attention = OpByName(op_name, "FLASH_ATTN_EXT");
  host.top_k = OpByName(op_name, "TOP_K");
  host.custom = OpByName(op_name, "CUSTOM");
  constexpr std::array kFreeOfWork = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"};
  std::transform(kFreeOfWork.begin(), kFreeOfWork.end(), host.free_of_work.begin(),
                 [&](const char* name) { return OpByName(op_name, name); });
  return host;
}

void* FindLoadedGgml() {
  std::string path;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        const bool found = fs::path(info->dlpi_name).filename().string().starts_with(kGgmlBase);
        if (found) {
          *static_cast<std::string*>(data) = info->dlpi_name;
        }
        return found ? 1 : 0;
      },
      &path);
  return path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
}

void StayLoaded() { dlopen(OwnPath().c_str(), RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE); }

ggml::Registry* InitNeighbor(const Neighbor& neighbor) {
  return Find<ggml::Registry*()>(neighbor.handle, "ggml_backend_init")();
}

ggml::Device* KnownDevice(ggml::Registry& registry) {
  if (registry.api_version != kApiVersion) {
    Warn("not used: ggml's backend API is " + std::to_string(registry.api_version) +
         ", and this file was tested with " + std::to_string(kApiVersion) +
         "; llama.cpp goes on without Riffle");
    return nullptr;
  }
  if (registry.functions.get_device_count(&registry) == 0) {
    return nullptr;
  }
  ggml::Device* const device = registry.functions.get_device(&registry, 0);
  // Checks the layout: `registry` follows the functions, whose number grew under one API version.
  if (device->registry != &registry) {
    Warn("not used: ggml's devices have another layout; llama.cpp goes on without Riffle");
    return nullptr;
  }
  return device;
}

std::optional<RowFormat> Host::Format(int type) const {
  static constexpr std::pair<std::string_view, RowFormat> kFormats[] = {
      {"f32", {DType::kF32, KvFormat::kPlain}},   {"f16", {DType::kF16, KvFormat::kPlain}},
      {"bf16", {DType::kBF16, KvFormat::kPlain}}, {"q8_0", {DType::kU8, KvFormat::kQ8_0}},
      {"q4_0", {DType::kU8, KvFormat::kQ4_0}},    {"q4_1", {DType::kU8, KvFormat::kQ4_1}},
      {"q5_0", {DType::kU8, KvFormat::kQ5_0}},    {"q5_1", {DType::kU8, KvFormat::kQ5_1}},
      {"iq4_nl", {DType::kU8, KvFormat::kIQ4NL}},
  };
  const char* name = type_name(type);
  for (const auto& [known, format] : kFormats) {
    if (name != nullptr && known == name) {
      return format;
    }
  }
  return std::nullopt;
}

}  // namespace riffle::llama
