// A model as data: what the forward pass executes. Files beside this one make it from a GGUF file,
// one file an architecture; nothing else knows architectures.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace riffle::engine {

// The activation of a feed-forward network's gate: down(activation(gate(x)) * up(x)).
enum class Activation : uint8_t {
  kGelu,  // x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
  kSilu,  // x / (1 + e^-x)
};

// Which elements of a head form a RoPE pair, given the row order of the file's Q and K weights.
enum class RopePairs : uint8_t {
  kHalves,    // i and i + head_dim / 2
  kAdjacent,  // 2 i and 2 i + 1
};

// Pair i at position p is rotated by p * scale * base^(-2 i / head_dim) / factor[i].
struct RopeSpec {
  // YaRN: pairs that rotate more than beta_fast times in the original context are not scaled, those
  // that rotate less than beta_slow times are, and between them the mixture is linear in i. Source:
  // Peng et al., "YaRN: efficient context window extension" (2023), section 3.
  struct Yarn {
    double original_context;  // tokens
    double beta_fast = 32;
    double beta_slow = 1;
  };

  double base = 10000;
  double scale = 1;      // 1 / the factor of linear scaling or of YaRN
  double magnitude = 1;  // factor on rotated queries and keys
  std::optional<Yarn> yarn = {};
  std::string factors = {};  // the tensor of factors [head_dim / 2]; empty: all are 1
  // LongRoPE: other factors for a context of at most original_context tokens. As in llama.cpp, the
  // engine's context decides, not the length of a text, whose angles must not change as it grows.
  // Source: Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens" (2024).
  std::string short_factors = {};  // a tensor like `factors`; empty: `factors` serves every context
  int64_t original_context = 0;
};

// Names of a layer's tensors. An empty name: the layer has no such tensor, and its step is left
// out.
struct LayerTensors {
  std::string q, k, v, o;  // weights [out, in]; o: the attention's output
  std::string q_bias, k_bias, v_bias, o_bias;
  std::string gate, up, down;  // the feed-forward network's
  // RMS norms, x / rms(x) * weight: [hidden] before attention, of its output, before the
  // feed-forward network, and of its output; [head_dim] of every head of q and k.
  std::string attention_norm, post_attention_norm, ffn_norm, post_ffn_norm;
  std::string q_norm, k_norm;
};

struct LayerSpec {
  LayerTensors tensors;
  std::optional<int64_t> window;  // tokens that a query sees, its own included; unset: all
  size_t rope = 0;                // index into ModelSpec::ropes
  float attention_scale = 1;      // multiplies the products of queries and keys
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
  std::vector<int32_t> stop_tokens;     // each ends a text: end of text, end of turn, ...

  std::string embedding;    // tensor [vocab, hidden]
  std::string output_norm;  // tensor [hidden]
  std::string head;         // tensor [vocab, hidden]: the LM head; `embedding` if tied

  RopePairs rope_pairs = RopePairs::kHalves;
  std::vector<RopeSpec> ropes;  // those that layers use, each once
  std::vector<LayerSpec> layers;

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
  int64_t query_size() const { return q_heads * head_dim; }  // values of a token
  int64_t key_size() const { return kv_heads * head_dim; }
};

}  // namespace riffle::engine
