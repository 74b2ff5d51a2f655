// A fake neighbour with an untested version of ggml or another backend API, as the build defines
// them. Riffle must leave all of it alone.
#include "../ggml_abi.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
riffle::llama::ggml::Registry registry = {RIFFLE_FAKE_API, {}, nullptr};
}

EXPORT const char* ggml_version() { return RIFFLE_FAKE_VERSION; }
EXPORT const char* ggml_op_name(int op) {
  constexpr const char* kNames[] = {"NONE",      "RESHAPE", "VIEW",           "PERMUTE",
                                    "TRANSPOSE", "TOP_K",   "FLASH_ATTN_EXT", "CUSTOM"};
  return kNames[op];
}
EXPORT const char* ggml_type_name(int) { return "f32"; }
EXPORT size_t ggml_tensor_overhead() { return 32 + sizeof(riffle::llama::ggml::Tensor); }
EXPORT int ggml_graph_n_nodes(void*) { return 0; }
EXPORT void* ggml_graph_node(void*, int) { return nullptr; }
EXPORT void* ggml_backend_cpu_buffer_type() { return nullptr; }
EXPORT void* ggml_backend_cpu_buffer_from_ptr(void*, size_t) { return nullptr; }
EXPORT bool ggml_backend_buft_is_host(void*) { return true; }
EXPORT int ggml_backend_score() { return 7; }
EXPORT void* ggml_backend_init() { return &registry; }
