// ggml's public functions that tests call, found in the libraries of the host at run time.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>

#include "../ggml_abi.h"

namespace riffle::llama::test {

struct Functions {
  struct InitParams {
    size_t mem_size;
    void* mem_buffer;
    bool no_alloc;
  };
  using Tensor = ggml::Tensor;
  using Graph = ggml::Graph;

  void* (*init)(InitParams);
  void (*free)(void*);
  Tensor* (*new_tensor_4d)(void*, int type, int64_t, int64_t, int64_t, int64_t);
  Tensor* (*view_4d)(void*, Tensor*, int64_t, int64_t, int64_t, int64_t, size_t, size_t, size_t,
                     size_t offset);
  Tensor* (*permute)(void*, Tensor*, int, int, int, int);
  Tensor* (*copy)(void*, Tensor* from, Tensor* to);
  Tensor* (*flash_attn_ext)(void*, Tensor*, Tensor*, Tensor*, Tensor*, float, float, float);
  void (*add_sinks)(Tensor*, Tensor*);
  Tensor* (*top_k)(void*, Tensor*, int);
  Graph* (*new_graph)(void*);
  void (*build_forward_expand)(Graph*, Tensor*);
  const char* (*type_name)(int);
  size_t (*row_size)(int, int64_t);
  size_t (*quantize_chunk)(int, const float*, void*, int64_t, int64_t, int64_t, const float*);
  void* (*alloc_ctx_tensors)(void*, void* backend);
  void (*buffer_free)(void*);
  int (*graph_compute)(void* backend, Graph*);
  void* (*load)(const char*);
  void* (*reg_dev_get)(void*, size_t);
  void* (*reg_get_proc_address)(void*, const char*);
  void* (*dev_init)(void*, const char*);
  mutable void (*set_n_threads)(void* backend, int) = nullptr;

  Functions() {
    void* library = dlopen("libggml.so.0", RTLD_NOW | RTLD_GLOBAL);
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(
          library == nullptr ? nullptr : dlsym(library, name));
      if (function == nullptr) {
        std::fprintf(stderr, "libggml: no %s in libggml.so.0\n", name);
        std::exit(1);
      }
    };
    find(init, "ggml_init");
    find(free, "ggml_free");
    find(new_tensor_4d, "ggml_new_tensor_4d");
    find(view_4d, "ggml_view_4d");
    find(permute, "ggml_permute");
    find(copy, "ggml_cpy");
    find(flash_attn_ext, "ggml_flash_attn_ext");
    find(add_sinks, "ggml_flash_attn_ext_add_sinks");
    find(top_k, "ggml_top_k");
    find(new_graph, "ggml_new_graph");
    find(build_forward_expand, "ggml_build_forward_expand");
    find(type_name, "ggml_type_name");
    find(row_size, "ggml_row_size");
    find(quantize_chunk, "ggml_quantize_chunk");
    find(alloc_ctx_tensors, "ggml_backend_alloc_ctx_tensors");
    find(buffer_free, "ggml_backend_buffer_free");
    find(graph_compute, "ggml_backend_graph_compute");
    find(load, "ggml_backend_load");
    find(reg_dev_get, "ggml_backend_reg_dev_get");
    find(reg_get_proc_address, "ggml_backend_reg_get_proc_address");
    find(dev_init, "ggml_backend_dev_init");
  }

  int TypeByName(const std::string& name) const {
    constexpr int kTypes = 40;  // all that tests use are below
    for (int type = 0; type < kTypes; ++type) {
      if (type_name(type) != nullptr && name == type_name(type)) {
        return type;
      }
    }
    std::fprintf(stderr, "libggml: ggml has no type %s\n", name.c_str());
    std::exit(1);
  }

  // The CPU backend of a file; null if it cannot be loaded.
  void* MakeBackend(const char* path) const {
    void* registry = load(path);
    if (registry == nullptr) {
      return nullptr;
    }
    set_n_threads = reinterpret_cast<void (*)(void*, int)>(
        reg_get_proc_address(registry, "ggml_backend_set_n_threads"));
    return dev_init(reg_dev_get(registry, 0), nullptr);
  }

  // Converts an allocated tensor to an f32 tensor of its shape.
  bool Decode(void* backend, Tensor* from, Tensor* to) const;
};

// Tensors and their memory.
class Context {
 public:
  Context(const Functions& functions, size_t bytes)
      : ggml_(functions), context_(functions.init({bytes, nullptr, true})) {}
  ~Context() {
    if (buffer_ != nullptr) {
      ggml_.buffer_free(buffer_);
    }
    ggml_.free(context_);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void* get() const { return context_; }
  bool Allocate(void* backend) {
    buffer_ = ggml_.alloc_ctx_tensors(context_, backend);
    return buffer_ != nullptr;
  }

 private:
  const Functions& ggml_;
  void* context_;
  void* buffer_ = nullptr;
};

inline bool Functions::Decode(void* backend, Tensor* from, Tensor* to) const {
  Context context(*this, 1u << 20);
  Graph* graph = new_graph(context.get());
  build_forward_expand(graph, copy(context.get(), from, to));
  return graph_compute(backend, graph) == 0;
}

}  // namespace riffle::llama::test
