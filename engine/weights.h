// The weights of a Gemma 3 in memory.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/quant/matrix.h"
#include "riffle/linear_topk.h"

namespace riffle::engine {

struct Layer {
  Matrix q, k, v, o;      // o: the attention's output
  Matrix gate, up, down;  // the feed-forward network
  // Root mean square norms, as the file has them: 1 is added to the checkpoint's already.
  std::vector<float> attention_norm, post_attention_norm;  // [hidden]
  std::vector<float> ffn_norm, post_ffn_norm;              // [hidden]
  std::vector<float> q_norm, k_norm;                       // [head_dim]
};

struct Weights {
  std::vector<Layer> layers;
  std::vector<float> output_norm;  // [hidden]
  // [vocabulary, hidden] Q8_0, in the file's mapping: both the embedding and the LM head.
  WeightView embedding;

  int64_t bytes() const;  // what a token's computation reads
};

}  // namespace riffle::engine
