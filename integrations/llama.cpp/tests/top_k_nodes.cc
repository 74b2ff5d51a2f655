// Random TOP_K nodes through an unmodified ggml: the neighbour alone and the wrapped backend must
// both select the k largest. Then both are timed in turn on the shape that sparse attention asks
// for.
//
//   top_k_nodes NEIGHBOR RIFFLE CASES     files libggml-cpu-*.so
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "ggml_functions.h"
#include "testing/rng.h"

namespace {

using riffle::llama::ggml::Graph;
using riffle::llama::ggml::Tensor;
using riffle::llama::test::Context;
using riffle::llama::test::Functions;
using riffle::test::Rng;

class Rows {
 public:
  Rows(const Functions& ggml, void* backend, int64_t columns, int64_t rows, int64_t planes,
       int64_t k, Rng& rng)
      : ggml_(ggml), context_(ggml, 1u << 20) {
    x_ = ggml.new_tensor_4d(context_.get(), ggml.TypeByName("f32"), columns, rows, planes, 1);
    result_ = ggml.top_k(context_.get(), x_, static_cast<int>(k));
    graph_ = ggml.new_graph(context_.get());
    ggml.build_forward_expand(graph_, result_);
    ready_ = context_.Allocate(backend);
    for (int64_t i = 0; ready_ && i < columns * rows * planes; ++i) {
      // Few different values in some rows, so that there are ties.
      const double value = rng.Unit();
      data()[i] = static_cast<float>(i / columns % 3 == 0 ? static_cast<int>(value * 20) : value);
    }
  }

  // Whether each row of the result names k different columns, and no larger value was left out.
  bool Check(void* backend, int threads) {
    ggml_.set_n_threads(backend, threads);
    if (!ready_ || ggml_.graph_compute(backend, graph_) != 0) {
      return false;
    }
    const int64_t columns = x_->ne[0];
    const int64_t k = result_->ne[0];
    for (int64_t row = 0; row < x_->ne[1] * x_->ne[2]; ++row) {
      const float* x = data() + row * columns;
      const int32_t* selected = static_cast<const int32_t*>(result_->data) + row * k;
      std::vector<int32_t> places(selected, selected + k);
      std::sort(places.begin(), places.end());
      if (places.front() < 0 || places.back() >= columns ||
          std::adjacent_find(places.begin(), places.end()) != places.end()) {
        return false;
      }
      std::vector<float> got;
      for (const int32_t place : places) {
        got.push_back(x[place]);
      }
      std::sort(got.begin(), got.end(), std::greater<>());
      std::vector<float> all(x, x + columns);
      std::sort(all.begin(), all.end(), std::greater<>());
      if (!std::equal(got.begin(), got.end(), all.begin())) {
        return false;
      }
    }
    return true;
  }

  double Milliseconds(void* backend) const {
    const auto start = std::chrono::steady_clock::now();
    ggml_.graph_compute(backend, graph_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() * 1e3;
  }

 private:
  float* data() const { return static_cast<float*>(x_->data); }

  const Functions& ggml_;
  Context context_;
  Tensor* x_ = nullptr;
  Tensor* result_ = nullptr;
  Graph* graph_ = nullptr;
  bool ready_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: top_k_nodes NEIGHBOR RIFFLE CASES\n");
    return 2;
  }
  const Functions ggml;
  void* plain = ggml.MakeBackend(argv[1]);  // made before the device is wrapped
  void* wrapped = ggml.MakeBackend(argv[2]);
  if (plain == nullptr || wrapped == nullptr) {
    std::fprintf(stderr, "top_k_nodes: a backend cannot be loaded\n");
    return 1;
  }
  Rng rng(1);
  int wrong = 0;
  const int cases = std::atoi(argv[3]);
  for (int i = 0; i < cases; ++i) {
    const int64_t columns = rng.OneIn(3) ? rng.Between(1, 40) : rng.Between(1, 5000);
    const int64_t rows = rng.Between(1, 9);
    const int64_t planes = rng.Between(1, 3);
    const int64_t k = rng.Between(1, columns);
    Rows nodes(ggml, plain, columns, rows, planes, k, rng);
    if (!nodes.Check(plain, 2) || !nodes.Check(wrapped, static_cast<int>(rng.Between(1, 3)))) {
      std::printf("wrong: %ld of %ld, %ld x %ld rows\n", k, columns, rows, planes);
      ++wrong;
    }
  }
  const Rows large(ggml, plain, 32768, 512, 1, 2048, rng);
  double best[2] = {1e30, 1e30};
  ggml.set_n_threads(plain, 2);
  ggml.set_n_threads(wrapped, 2);
  for (int turn = 0; turn < 3; ++turn) {
    best[0] = std::min(best[0], large.Milliseconds(plain));
    best[1] = std::min(best[1], large.Milliseconds(wrapped));
  }
  std::printf("%d of %d right; 2048 of 32768, 512 rows: llama.cpp %.1f ms, Riffle %.1f ms, %.1f\n",
              cases - wrong, cases, best[0], best[1], best[0] / best[1]);
  return wrong == 0 && cases > 0 ? 0 : 1;
}
