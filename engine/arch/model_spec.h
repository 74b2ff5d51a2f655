// A model as data: what the forward pass executes. Files beside this one make it from a GGUF file,
// one file an architecture; nothing else knows architectures.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace riffle::engine {

// Of the gate of a feed-forward network, down(activation(gate(x)) * up(x)).
enum class Activation : uint8_t {
  kGelu,  // x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
  kSilu,  // x / (1 + e^-x)
};

// Which elements of a head turn together, as the rows of the file's Q and K weights have them.
enum class RopePairs : uint8_t {
  kHalves,    // i and i + head_dim / 2
  kAdjacent,  // 2 i and 2 i + 1
};

// Pair i of position p turns by p * scale * base^(-2 i / head_dim) / factor[i].
struct RopeSpec {
  // YaRN: pairs of more than beta_fast turns in the context of the first training turn without the
  // scale, those of fewer than beta_slow with it, and those between by a mixture that is linear in
  // i. Source: Peng et al., "YaRN: efficient context window extension" (2023), section 3.
  struct Yarn {
    double original_context;  // tokens
    double beta_fast = 32;
    double beta_slow = 1;
  };

  double base = 10000;
  double scale = 1;      // 1 / the factor of linear scaling or of YaRN
  double magnitude = 1;  // of the turned queries and keys
  std::optional<Yarn> yarn = {};
  std::string factors = {};  // the tensor of factors [head_dim / 2]; empty: all are 1
  // LongRoPE: other factors for a context of at most original_context tokens. The engine's context
  // decides, as llama.cpp's does, not the length of a text: its angles must not change as it grows.
  // Source: Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens" (2024).
  std::string short_factors = {};  // a tensor as `factors`; empty: those are for every context
  int64_t original_context = 0;
};

// Names of a layer's tensors. An empty name: the layer has no such tensor, and its step is left
// out.
struct LayerTensors {
  std::string q, k, v, o;  // weights [out, in]; o: the attention's output
  std::string q_bias, k_bias, v_bias, o_bias;
  std::string gate, up, down;  // the feed-forward network's
  // Root mean square norms: before attention, of its output, before the feed-forward network, of
  // its output [hidden]; of every head of q and k [head_dim]. x is normed to x / rms(x) * weight.
  std::string attention_norm, post_attention_norm, ffn_norm, post_ffn_norm;
  std::string q_norm, k_norm;
};

struct LayerSpec {
  LayerTensors tensors;
  std::optional<int64_t> window;  // tokens that a query sees, its own included; unset: all
  size_t rope = 0;                // in ModelSpec::ropes
  float attention_scale = 1;      // of the products of queries and keys
  std::optional<float> attention_soft_cap;  // c: a scaled product x becomes c * tanh(x / c)
  Activation activation = Activation::kSilu;
};

struct ModelSpec {
  std::string architecture;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;        // a multiple of 32, as are the next three
  int64_t intermediate_size = 0;  // of the feed-forward networks
  int64_t head_dim = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t context_length = 0;  // tokens, prompt and generated
  float rms_epsilon = 0;
  float embedding_scale = 1;
  std::optional<float> logit_soft_cap;  // c: a logit x becomes c * tanh(x / c)
  std::vector<int32_t> stop_tokens;     // each ends a text: of the sequence, of a turn, ...

  std::string embedding;    // tensor [vocab, hidden]
  std::string output_norm;  // tensor [hidden]
  std::string head;         // tensor [vocab, hidden]: the LM head; that of `embedding` if tied

  RopePairs rope_pairs = RopePairs::kHalves;
  std::vector<RopeSpec> ropes;  // the different ones of the layers
  std::vector<LayerSpec> layers;

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
  int64_t query_size() const { return q_heads * head_dim; }  // values of a token
  int64_t key_size() const { return kv_heads * head_dim; }
};

}  // namespace riffle::engine
