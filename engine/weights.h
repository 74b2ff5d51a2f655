// The weights of a model in memory.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/lm_head.h"
#include "engine/quant/matrix.h"

namespace riffle::engine {

// The tensors that LayerTensors names; empty if a layer has no such tensor.
struct Layer {
  Matrix q, k, v, o;
  std::vector<float> q_bias, k_bias, v_bias, o_bias;
  Matrix gate, up, down;
  std::vector<float> attention_norm, post_attention_norm, ffn_norm, post_ffn_norm;
  std::vector<float> q_norm, k_norm;
};

struct Weights {
  std::vector<Layer> layers;
  // The factors of each of ModelSpec::ropes, [head_dim / 2] or empty.
  std::vector<std::vector<float>> rope_factors, rope_short_factors;
  std::vector<float> output_norm;     // [hidden]
  const Tensor* embedding = nullptr;  // [vocab, hidden], in the file's mapping
  LmHead head;

  int64_t bytes() const;  // what a token's computation reads
};

}  // namespace riffle::engine
