// The llama.cpp that loads this file: the CPU backend that it would have taken, which versions of
// ggml are known, and the few functions and numbers of ggml that are needed.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "ggml_abi.h"
#include "riffle/attention.h"

namespace riffle::llama {

// How rows of keys or values are coded.
struct RowFormat {
  DType dtype = DType::kU8;
  KvFormat format = KvFormat::kPlain;
};

// Functions of libggml-base, and what the numbers of this version mean: they are found by name.
struct Host {
  int (*graph_nodes)(ggml::Graph*) = nullptr;
  ggml::Tensor* (*graph_node)(ggml::Graph*, int index) = nullptr;
  const char* (*type_name)(int type) = nullptr;
  ggml::BufferType* (*cpu_buffer_type)() = nullptr;
  ggml::Buffer* (*cpu_buffer_from_ptr)(void* data, size_t bytes) = nullptr;
  bool (*is_host)(ggml::BufferType*) = nullptr;
  int flash_attention = -1;  // of Tensor::op
  int top_k = -1;
  int custom = -1;
  std::array<int, 5> free_of_work = {};  // operations that only show memory in another shape

  // None: a type that Riffle does not read.
  std::optional<RowFormat> Format(int type) const;
};

// The CPU backend beside this file whose own score for this machine is the highest.
struct Neighbor {
  std::string path;
  int score = 0;
  void* handle = nullptr;  // of dlopen
};

// Its handle is 0 where there is none. The caller closes it.
Neighbor FindNeighbor();

// The host behind a library that is or needs libggml-base. None, with a logged line that says why,
// where ggml is of a version that no test has run with.
std::optional<Host> FindHost(void* library);

// libggml-base, if this process has loaded it; else null. The caller closes it.
void* FindLoadedGgml();

// Keeps this file loaded. ggml closes a library whose registry it already has; the neighbour's
// device would then call functions that are no longer mapped.
void StayLoaded();

// The registry of the neighbour's backend; null if it has none.
ggml::Registry* InitNeighbor(const Neighbor& neighbor);

// The number of the backend API whose layouts ggml_abi.h has.
inline constexpr int kApiVersion = 3;

// The first device of the neighbour, if its layout is that of ggml_abi.h in all that can be
// checked; else null, with a logged line that says so.
ggml::Device* KnownDevice(ggml::Registry& registry);

}  // namespace riffle::llama
