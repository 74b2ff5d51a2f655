// Times of FLASH_ATTN_EXT nodes by llama.cpp's own kernel and by Riffle, in turn.
//
//   node_times NEIGHBOR RIFFLE [TYPES [CELLS...]]    files libggml-cpu-*.so; such as f16,q8_0 256
//   4096
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "ggml_functions.h"

namespace {

using riffle::llama::ggml::Graph;
using riffle::llama::ggml::Tensor;
using riffle::llama::test::Context;
using riffle::llama::test::Functions;

constexpr int kThreads = 2;

struct Shape {
  const char* name;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
};

constexpr Shape kShapes[] = {
    {"32 heads, 8 of K, d 128", 32, 8, 128},
    {"32 heads, 8 of K, d 64", 32, 8, 64},
    {"9 heads, 3 of K, d 64", 9, 3, 64},
    {"4 heads, 1 of K, d 256", 4, 1, 256},
};

// Nodes of up to 24 layers, each with its own KV cache: up to 256 MiB in all, so that they stay in
// the processor's caches only if those of a model would.
class Nodes {
 public:
  Nodes(const Functions& ggml, void* backend, const Shape& shape, const std::string& type,
        int64_t cells, int64_t tokens)
      : context_(ggml, 4u << 20) {
    const int number = ggml.TypeByName(type);
    const size_t row = ggml.row_size(number, shape.dim * shape.kv_heads);
    constexpr int64_t kBytes = 256 << 20;
    layers_ = std::clamp<int64_t>(kBytes / (2 * static_cast<int64_t>(row) * cells), 1, 24);
    Tensor* mask = ggml.new_tensor_4d(context_.get(), ggml.TypeByName("f16"), cells, tokens, 1, 1);
    Tensor* q = ggml.new_tensor_4d(context_.get(), ggml.TypeByName("f32"), shape.dim, shape.heads,
                                   tokens, 1);
    graph_ = ggml.new_graph(context_.get());
    std::vector<Tensor*> caches;
    for (int64_t layer = 0; layer < layers_; ++layer) {
      Tensor* views[2];
      for (Tensor*& view : views) {
        caches.push_back(
            ggml.new_tensor_4d(context_.get(), number, shape.dim * shape.kv_heads, cells, 1, 1));
        view = ggml.view_4d(context_.get(), caches.back(), shape.dim, cells, shape.kv_heads, 1, row,
                            ggml.row_size(number, shape.dim), row * static_cast<size_t>(cells), 0);
      }
      ggml.build_forward_expand(
          graph_, ggml.flash_attn_ext(context_.get(), ggml.permute(context_.get(), q, 0, 2, 1, 3),
                                      views[0], views[1], mask,
                                      1.0f / std::sqrt(static_cast<float>(shape.dim)), 0, 0));
    }
    if (!context_.Allocate(backend)) {
      std::fprintf(stderr, "node_times: no memory\n");
      std::exit(1);
    }
    std::vector<float> numbers(static_cast<size_t>(shape.dim * shape.kv_heads * cells));
    uint32_t state = 1;
    for (float& x : numbers) {
      state = state * 1664525 + 1013904223;
      x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
    for (Tensor* cache : caches) {
      if (type == "f32") {
        std::memcpy(cache->data, numbers.data(), numbers.size() * sizeof(float));
      } else {
        ggml.quantize_chunk(number, numbers.data(), cache->data, 0, cells,
                            shape.dim * shape.kv_heads, nullptr);
      }
    }
    for (int64_t i = 0; i < shape.dim * shape.heads * tokens; ++i) {
      static_cast<float*>(q->data)[i] = numbers[static_cast<size_t>(i) % numbers.size()];
    }
    for (int64_t token = 0; token < tokens; ++token) {  // causal: the last cells are the tokens'
      auto* bits = static_cast<uint16_t*>(mask->data) + token * cells;
      std::fill_n(bits, cells, uint16_t{0xfc00});
      std::fill_n(bits, cells - tokens + token + 1, uint16_t{0});
    }
  }

  // Microseconds a node.
  double Time(const Functions& ggml, void* backend) const {
    const auto start = std::chrono::steady_clock::now();
    ggml.graph_compute(backend, graph_);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    return elapsed.count() / static_cast<double>(layers_) * 1e6;
  }

 private:
  Context context_;
  int64_t layers_ = 0;
  Graph* graph_ = nullptr;
};

void Compare(const Functions& ggml, void* plain, void* wrapped, const Shape& shape,
             const std::string& type, int64_t cells, int64_t tokens) {
  const Nodes nodes(ggml, plain, shape, type, cells, tokens);
  double best[2] = {1e30, 1e30};
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  for (int round = 0; round < 3 || (round < 30 && elapsed() < 0.15); ++round) {
    best[0] = std::min(best[0], nodes.Time(ggml, plain));
    best[1] = std::min(best[1], nodes.Time(ggml, wrapped));
  }
  std::printf("%-24s %-6s %6ld cells %4ld tokens: llama.cpp %9.1f us, Riffle %9.1f us, %5.2f\n",
              shape.name, type.c_str(), cells, tokens, best[0], best[1], best[0] / best[1]);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: node_times NEIGHBOR RIFFLE [TYPES [CELLS...]]\n");
    return 2;
  }
  const Functions ggml;
  void* plain = ggml.MakeBackend(argv[1]);  // made before the device is wrapped
  void* wrapped = ggml.MakeBackend(argv[2]);
  if (plain == nullptr || wrapped == nullptr) {
    std::fprintf(stderr, "node_times: a backend cannot be loaded\n");
    return 1;
  }
  ggml.set_n_threads(plain, kThreads);
  ggml.set_n_threads(wrapped, kThreads);
  std::vector<int64_t> cells = {256, 512, 1024, 4096, 16384};
  if (argc > 4) {
    cells.clear();
    for (int i = 4; i < argc; ++i) {
      cells.push_back(std::atoll(argv[i]));
    }
  }
  std::istringstream types(argc > 3 ? argv[3] : "f16,q8_0");
  for (std::string type; std::getline(types, type, ',');) {
    for (const int64_t tokens : {int64_t{1}, int64_t{64}}) {
      for (const Shape& shape : kShapes) {
        for (const int64_t n : cells) {
          if (n >= tokens && n * tokens <= 512 * 1024) {
            Compare(ggml, plain, wrapped, shape, type, n, tokens);
          }
        }
      }
    }
  }
}
