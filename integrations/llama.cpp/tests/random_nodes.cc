// Random FLASH_ATTN_EXT nodes through an unmodified ggml, by the wrapped backend and by its
// neighbour alone, both checked against a loop in double over the numbers that ggml decodes.
//
//   random_nodes NEIGHBOR RIFFLE CASES [SEED]     files libggml-cpu-*.so
//   random_nodes score FILE                       prints what llama.cpp chooses files by
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "ggml_functions.h"
#include "node_case.h"
#include "testing/rng.h"

namespace {

using riffle::llama::ggml::Graph;
using riffle::llama::ggml::Tensor;
using riffle::llama::test::Case;
using riffle::llama::test::Context;
using riffle::llama::test::Functions;
using riffle::llama::test::MaskKind;
using riffle::llama::test::Numbers;
using riffle::test::Rng;

float Normal(Rng& rng) {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) {
    sum += rng.Unit();
  }
  return static_cast<float>(sum);
}

// A cache [streams, kv_size, heads * dim] of random rows as llama.cpp lays it out, the view of it
// that a node reads, and its numbers.
struct Cache {
  Tensor* root = nullptr;
  Tensor* view = nullptr;
  Tensor* decoded = nullptr;  // f32, of the root
};

struct Layer {
  Tensor* q = nullptr;
  Cache keys;
  Cache values;
  Tensor* sinks = nullptr;
  Tensor* result = nullptr;
};

Cache MakeCache(const Functions& ggml, void* context, const Case& c, const std::string& type,
                int64_t dim) {
  const int number = ggml.TypeByName(type);
  const int64_t width = dim * c.kv_heads;
  Cache cache;
  cache.root = ggml.new_tensor_4d(context, number, width, c.kv_size, c.streams, 1);
  const size_t row = cache.root->nb[1];
  const size_t head = ggml.row_size(number, dim);
  cache.view = ggml.view_4d(context, cache.root, dim, c.cells, c.kv_heads, c.streams, row, head,
                            row * static_cast<size_t>(c.kv_size), 0);
  cache.decoded =
      ggml.new_tensor_4d(context, ggml.TypeByName("f32"), width, c.kv_size, c.streams, 1);
  return cache;
}

void FillCache(const Functions& ggml, Cache& cache, const std::string& type, Rng& rng) {
  auto* decoded = static_cast<float*>(cache.decoded->data);
  const int64_t width = cache.root->ne[0];
  const int64_t rows = cache.root->ne[1] * cache.root->ne[2];
  for (int64_t i = 0; i < width * rows; ++i) {
    decoded[i] = Normal(rng);
  }
  if (type == "f32") {
    std::memcpy(cache.root->data, decoded, static_cast<size_t>(width * rows) * sizeof(float));
  } else {
    ggml.quantize_chunk(ggml.TypeByName(type), decoded, cache.root->data, 0, rows, width, nullptr);
  }
}

// Bounds of Error: of f32 sums of exact products; of probabilities rounded to 8 bits.
constexpr double kExact = 1e-10;
constexpr double kRoundedProbabilities = 0x1p-16;

bool HoldsInBF16(const std::string& type) {
  return type == "bf16" || type == "q8_0" || type == "q4_0" || type == "q5_0" || type == "iq4_nl";
}

// The nearest numbers of 8 bits, ties to even.
std::vector<float> RoundToBF16(const float* x, int64_t count) {
  std::vector<float> rounded(x, x + count);
  for (float& number : rounded) {
    int exponent = 0;
    const float mantissa = std::frexp(number, &exponent);
    number = std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
  }
  return rounded;
}

struct Totals {
  double riffle = 0;
  double rounded = 0;
  double llama = 0;
  int taken = 0;
};

// The tensors of a case, in memory that the backend gave.
class Graphs {
 public:
  Graphs(const Functions& functions, void* backend, const Case& c, Rng& rng);

  // False, with a line, if a result is not what it must be.
  bool Check(void* plain, void* wrapped, Totals& totals);

 private:
  void MakeLayer(Layer& layer);
  bool Fill(void* backend, Rng& rng);
  bool Run(void* backend, std::vector<std::vector<float>>& results);
  size_t ResultSize() const {
    return static_cast<size_t>(case_.streams * case_.tokens * heads_ * case_.value_dim);
  }

  const Functions& ggml_;
  const Case case_;
  const int64_t heads_;
  const float scale_;
  Context context_;
  Tensor* mask_tensor_ = nullptr;
  std::vector<uint16_t> mask_;
  std::vector<Layer> layers_;
  Graph* graph_ = nullptr;
  bool filled_ = false;
};

Graphs::Graphs(const Functions& functions, void* backend, const Case& c, Rng& rng)
    : ggml_(functions),
      case_(c),
      heads_(c.kv_heads * c.group),
      scale_(1.0f / std::sqrt(static_cast<float>(c.key_dim))),
      context_(functions, 4u << 20),
      layers_(static_cast<size_t>(c.layers)) {
  if (c.mask != MaskKind::kNone) {
    mask_tensor_ = ggml_.new_tensor_4d(context_.get(), ggml_.TypeByName("f16"), c.cells, c.tokens,
                                       1, c.streams);
  }
  graph_ = ggml_.new_graph(context_.get());
  for (Layer& layer : layers_) {
    MakeLayer(layer);
    ggml_.build_forward_expand(graph_, layer.result);
  }
  filled_ = context_.Allocate(backend) && Fill(backend, rng);
}

void Graphs::MakeLayer(Layer& layer) {
  const Case& c = case_;
  const int f32 = ggml_.TypeByName("f32");
  // As llama.cpp has it: heads of a token are adjacent, and the node sees them permuted.
  layer.q = ggml_.new_tensor_4d(context_.get(), f32, c.key_dim, heads_, c.tokens, c.streams);
  layer.keys = MakeCache(ggml_, context_.get(), c, c.key_type, c.key_dim);
  layer.values = layer.keys;
  if (c.values_in_keys) {
    const Tensor* k = layer.keys.view;
    layer.values.view = ggml_.view_4d(context_.get(), layer.keys.root, c.value_dim, c.cells,
                                      c.kv_heads, c.streams, k->nb[1], k->nb[2], k->nb[3], 0);
  } else {
    layer.values = MakeCache(ggml_, context_.get(), c, c.value_type, c.value_dim);
  }
  layer.result = ggml_.flash_attn_ext(
      context_.get(), ggml_.permute(context_.get(), layer.q, 0, 2, 1, 3), layer.keys.view,
      layer.values.view, mask_tensor_, scale_, c.max_bias, c.soft_cap);
  if (c.sinks) {
    layer.sinks = ggml_.new_tensor_4d(context_.get(), f32, heads_, 1, 1, 1);
    ggml_.add_sinks(layer.result, layer.sinks);
  }
}

bool Graphs::Fill(void* backend, Rng& rng) {
  const Case& c = case_;
  mask_ = RandomMask(c, rng);
  if (mask_tensor_ != nullptr) {
    std::memcpy(mask_tensor_->data, mask_.data(), mask_.size() * sizeof(uint16_t));
  }
  for (Layer& layer : layers_) {
    auto* q = static_cast<float*>(layer.q->data);
    for (int64_t i = 0; i < c.streams * c.tokens * heads_ * c.key_dim; ++i) {
      q[i] = 2 * Normal(rng);
    }
    for (int64_t h = 0; layer.sinks != nullptr && h < heads_; ++h) {
      static_cast<float*>(layer.sinks->data)[h] = Normal(rng);
    }
    // The reference uses the numbers that ggml decodes from the cache, not those that were encoded.
    FillCache(ggml_, layer.keys, c.key_type, rng);
    if (!ggml_.Decode(backend, layer.keys.root, layer.keys.decoded)) {
      return false;
    }
    if (!c.values_in_keys) {
      FillCache(ggml_, layer.values, c.value_type, rng);
      if (!ggml_.Decode(backend, layer.values.root, layer.values.decoded)) {
        return false;
      }
    }
  }
  return true;
}

bool Graphs::Run(void* backend, std::vector<std::vector<float>>& results) {
  for (const Layer& layer : layers_) {
    std::memset(layer.result->data, 0xff, ResultSize() * sizeof(float));
  }
  ggml_.set_n_threads(backend, case_.threads);
  if (ggml_.graph_compute(backend, graph_) != 0) {
    return false;
  }
  for (const Layer& layer : layers_) {
    const auto* data = static_cast<const float*>(layer.result->data);
    results.emplace_back(data, data + ResultSize());
  }
  return true;
}

bool Graphs::Check(void* plain, void* wrapped, Totals& totals) {
  const Case& c = case_;
  std::vector<std::vector<float>> expected;
  std::vector<std::vector<float>> got;
  if (!filled_ || !Run(plain, expected) || !Run(wrapped, got)) {
    std::printf("failed: %s\n", Describe(c).c_str());
    return false;
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    Numbers numbers;
    numbers.q = static_cast<const float*>(layer.q->data);
    numbers.keys = static_cast<const float*>(layer.keys.decoded->data);
    numbers.values = static_cast<const float*>(layer.values.decoded->data);
    numbers.sinks = layer.sinks == nullptr ? nullptr : static_cast<float*>(layer.sinks->data);
    numbers.scale = scale_;
    const std::vector<double> exact = Exact(c, numbers, mask_);
    const double llama = riffle::llama::test::Error(expected[i].data(), exact);
    double riffle = riffle::llama::test::Error(got[i].data(), exact);
    // If bf16 can hold the elements of K and V, queries and probabilities may be rounded to bf16.
    if (HoldsInBF16(c.key_type) && HoldsInBF16(c.value_type) && riffle >= kExact) {
      const std::vector<float> rounded =
          RoundToBF16(numbers.q, c.streams * c.tokens * heads_ * c.key_dim);
      numbers.q = rounded.data();
      const double of_rounded = riffle::llama::test::Error(got[i].data(), Exact(c, numbers, mask_));
      totals.rounded = std::max(totals.rounded, riffle);
      riffle = of_rounded < kRoundedProbabilities ? 0.0 : riffle;
    }
    const bool same =
        std::memcmp(expected[i].data(), got[i].data(), ResultSize() * sizeof(float)) == 0;
    // Riffle leaves ALiBi to llama.cpp: the bits are equal. All else is f32 sums of exact products.
    const bool good = c.max_bias != 0.0f ? same : riffle < kExact;
    // ggml rounds q to 8 bits for keys in blocks and sums values in f16.
    if (!good || !(llama < 2e-3)) {
      std::printf("wrong: layer %zu, error %.2e by Riffle, %.2e by llama.cpp: %s\n", i, riffle,
                  llama, Describe(c).c_str());
      return false;
    }
    if (c.max_bias == 0.0f) {
      totals.riffle = std::max(totals.riffle, riffle);
      totals.llama = std::max(totals.llama, llama);
      ++totals.taken;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string_view(argv[1]) == "score") {
    void* file = dlopen(argv[2], RTLD_NOW);
    const auto score =
        reinterpret_cast<int (*)()>(file == nullptr ? nullptr : dlsym(file, "ggml_backend_score"));
    std::printf("%d\n", score == nullptr ? 0 : score());
    return 0;
  }
  if (argc < 4) {
    std::fprintf(stderr, "usage: random_nodes NEIGHBOR RIFFLE CASES [SEED]\n");
    return 2;
  }
  const Functions ggml;
  // Made before the device is wrapped, so it stays the neighbour's own.
  void* plain = ggml.MakeBackend(argv[1]);
  void* wrapped = ggml.MakeBackend(argv[2]);
  if (plain == nullptr || wrapped == nullptr) {
    std::fprintf(stderr, "random_nodes: a backend cannot be loaded\n");
    return 1;
  }
  Rng rng(argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 1);
  Totals totals;
  int wrong = 0;
  const int cases = std::atoi(argv[3]);
  for (int i = 0; i < cases; ++i) {
    Graphs graphs(ggml, plain, riffle::llama::test::RandomCase(rng), rng);
    wrong += graphs.Check(plain, wrapped, totals) ? 0 : 1;
  }
  std::printf(
      "%d of %d graphs right; %d nodes by Riffle; largest error %.1e by Riffle (%.1e where it "
      "rounds queries), %.1e by llama.cpp\n",
      cases - wrong, cases, totals.taken, totals.riffle, totals.rounded, totals.llama);
  return wrong == 0 && totals.taken > 0 ? 0 : 1;
}
