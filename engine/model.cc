#include "engine/model.h"

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "engine/arch/architectures.h"
#include "engine/quant/blocks.h"
#include "engine/weights.h"

namespace riffle::engine {
namespace {

// Reads tensors in the shapes that the spec gives them.
class WeightReader {
 public:
  WeightReader(const GgufFile& file, const ModelSpec& spec, ThreadPool* pool)
      : file_(file), spec_(spec), pool_(pool) {
    if (spec.rope_pairs == RopePairs::kAdjacent) {
      turned_.head = spec.head_dim;
    }
  }

  Layer ReadLayer(const LayerTensors& names) const;
  std::vector<float> RopeFactors(const std::string& name) const;

  // The values of a vector; empty if the name is empty.
  std::vector<float> Vector(const std::string& name, int64_t size, RowOrder order = {}) const {
    if (name.empty()) {
      return {};
    }
    const std::array<int64_t, 1> shape = {size};
    const Tensor& tensor = file_.Get(name, shape);
    std::vector<float> values(static_cast<size_t>(size)), ordered(values.size());
    DequantizeRow(tensor.type, tensor.data, size, values.data());
    for (int64_t i = 0; i < size; ++i) {
      ordered[static_cast<size_t>(i)] = values[static_cast<size_t>(order.Source(i))];
    }
    return ordered;
  }

 private:
  Matrix Weight(const std::string& name, int64_t in, int64_t out, RowOrder order = {}) const {
    const std::array<int64_t, 2> shape = {in, out};
    return Pack(file_, file_.Get(name, shape), order, pool_);
  }

  const GgufFile& file_;
  const ModelSpec& spec_;
  ThreadPool* pool_;
  RowOrder turned_;  // the row order of Q and K
};

Layer WeightReader::ReadLayer(const LayerTensors& names) const {
  const int64_t hidden = spec_.hidden_size;
  const int64_t inner = spec_.intermediate_size;
  const int64_t queries = spec_.query_size();
  const int64_t keys = spec_.key_size();
  Layer layer;
  layer.q = Weight(names.q, hidden, queries, turned_);
  layer.k = Weight(names.k, hidden, keys, turned_);
  layer.v = Weight(names.v, hidden, keys);
  layer.o = Weight(names.o, queries, hidden);
  layer.q_bias = Vector(names.q_bias, queries, turned_);
  layer.k_bias = Vector(names.k_bias, keys, turned_);
  layer.v_bias = Vector(names.v_bias, keys);
  layer.o_bias = Vector(names.o_bias, hidden);
  layer.gate = Weight(names.gate, hidden, inner);
  layer.up = Weight(names.up, hidden, inner);
  layer.down = Weight(names.down, inner, hidden);
  layer.attention_norm = Vector(names.attention_norm, hidden);
  layer.post_attention_norm = Vector(names.post_attention_norm, hidden);
  layer.ffn_norm = Vector(names.ffn_norm, hidden);
  layer.post_ffn_norm = Vector(names.post_ffn_norm, hidden);
  layer.q_norm = Vector(names.q_norm, spec_.head_dim, turned_);
  layer.k_norm = Vector(names.k_norm, spec_.head_dim, turned_);
  return layer;
}

std::vector<float> WeightReader::RopeFactors(const std::string& name) const {
  std::vector<float> factors = Vector(name, spec_.head_dim / 2);
  for (const float factor : factors) {
    if (!(factor > 0 && std::isfinite(factor))) {
      file_.Fail("tensor " + name + " holds a factor that is not a positive number");
    }
  }
  return factors;
}

const Tensor& ReadVocabulary(const GgufFile& file, const std::string& name, const ModelSpec& spec) {
  const std::array<int64_t, 2> shape = {spec.hidden_size, spec.vocab_size};
  return file.Get(name, shape);
}

}  // namespace

int64_t Weights::bytes() const {
  int64_t bytes = head.bytes();
  for (const Layer& layer : layers) {
    for (const Matrix* matrix :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      bytes += matrix->bytes();
    }
  }
  return bytes;
}

Model::Model(const GgufFile& file, ThreadPool* pool)
    : file_(file), spec_(ReadSpec(file)), weights_(std::make_unique<Weights>()) {
  const WeightReader reader(file_, spec_, pool);
  weights_->embedding = &ReadVocabulary(file_, spec_.embedding, spec_);
  weights_->head = LmHead(file_, ReadVocabulary(file_, spec_.head, spec_), pool);
  weights_->output_norm = reader.Vector(spec_.output_norm, spec_.hidden_size);
  for (const RopeSpec& rope : spec_.ropes) {
    weights_->rope_factors.push_back(reader.RopeFactors(rope.factors));
    weights_->rope_short_factors.push_back(reader.RopeFactors(rope.short_factors));
  }
  for (const LayerSpec& layer : spec_.layers) {
    weights_->layers.push_back(reader.ReadLayer(layer.tensors));
  }
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;

}  // namespace riffle::engine
