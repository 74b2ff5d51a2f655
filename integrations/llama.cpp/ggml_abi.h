// What two compiled programs share at ggml's boundary for backends, written down from the headers
// ggml/include/ggml.h and ggml/src/ggml-backend-impl.h of llama.cpp (MIT). No package installs the
// second one, and its layouts change without its API number changing: ggml_host.cc says which
// versions of ggml have these. Members that this integration neither calls nor sets are `Unused`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace riffle::llama::ggml {

inline constexpr int kStatusAllocFailed = -2;
inline constexpr int kStatusFailed = -1;
inline constexpr int kStatusSuccess = 0;

inline constexpr int32_t kFlagCompute = 16;  // of a tensor: the graph computes it
inline constexpr int kAllThreads = -1;       // tasks of a custom operation
inline constexpr int kAccelerator = 3;       // type of a device that works beside the CPU's

// Element (i0, i1, i2, i3) is i0 * nb[0] + ... + i3 * nb[3] bytes behind data; ne are the extents.
struct Tensor {
  int32_t type;
  void* buffer;
  int64_t ne[4];
  size_t nb[4];
  int32_t op;
  int32_t op_params[16];
  int32_t flags;
  Tensor* src[10];
  Tensor* view_src;  // of a view: the tensor whose memory it shows
  size_t view_offs;
  void* data;
  char name[64];
  void* extra;
  char padding[8];
};
static_assert(sizeof(Tensor) == 336);

// Every thread of a graph's run calls `function` with its number and how many there are. In
// op_params of a tensor whose operation is CUSTOM.
struct CustomParams {
  void (*function)(Tensor* result, int thread, int threads, void* data);
  int tasks;
  void* data;
};
static_assert(sizeof(CustomParams) <= sizeof(Tensor::op_params));

struct Graph;  // read through ggml_graph_n_nodes and ggml_graph_node
struct Buffer;
struct BufferType;
struct Device;
struct Registry;

using Unused = void (*)();

struct Backend {
  void* guid;
  struct {
    const char* (*get_name)(Backend*);
    void (*free)(Backend*);
    Unused set_tensor_async, get_tensor_async, set_tensor_2d_async, get_tensor_2d_async;
    Unused cpy_tensor_async;
    Unused synchronize;
    Unused graph_plan_create, graph_plan_free, graph_plan_update, graph_plan_compute;
    int (*graph_compute)(Backend*, Graph*);
    Unused event_record, event_wait;
    Unused graph_optimize;
  } functions;
  Device* device;
  void* context;
};

struct DeviceProperties {
  const char* name;
  const char* description;
  size_t free_memory;
  size_t total_memory;
  int type;
  const char* device_id;
  bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
};

struct Device {
  struct {
    const char* (*get_name)(Device*);
    const char* (*get_description)(Device*);
    void (*get_memory)(Device*, size_t* available, size_t* total);
    int (*get_type)(Device*);
    void (*get_props)(Device*, DeviceProperties*);
    Backend* (*init_backend)(Device*, const char* params);
    BufferType* (*get_buffer_type)(Device*);
    Unused get_host_buffer_type;
    Buffer* (*buffer_from_host_ptr)(Device*, void* data, size_t bytes, size_t max_tensor_bytes);
    bool (*supports_op)(Device*, const Tensor*);
    bool (*supports_buft)(Device*, BufferType*);
    Unused offload_op;
    Unused event_new, event_free, event_synchronize;
  } functions;
  Registry* registry;
  void* context;
};

struct Registry {
  int api_version;
  struct {
    const char* (*get_name)(Registry*);
    size_t (*get_device_count)(Registry*);
    Device* (*get_device)(Registry*, size_t index);
    void* (*get_proc_address)(Registry*, const char* name);
  } functions;
  void* context;
};

}  // namespace riffle::llama::ggml
