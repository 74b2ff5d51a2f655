#include "engine/model.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "engine/quant/blocks.h"
#include "engine/weights.h"

namespace riffle::engine {
namespace {

// A metadata value that must lie in a range.
int64_t Number(const GgufFile& file, const std::string& key, int64_t least, int64_t most) {
  const int64_t value = file.Integer(key);
  if (value < least || value > most) {
    file.Fail(key + " = " + std::to_string(value) + " is not in " + std::to_string(least) + ".." +
              std::to_string(most));
  }
  return value;
}

double Positive(const GgufFile& file, const std::string& key) {
  const double value = file.Float(key);
  if (!(value > 0 && value < 1e30)) {
    file.Fail(key + " = " + std::to_string(value) + " is not a positive number");
  }
  return value;
}

int64_t MultipleOf32(const GgufFile& file, const std::string& key, int64_t most) {
  const int64_t value = Number(file, key, 32, most);
  if (value % 32 != 0) {
    file.Fail(key + " = " + std::to_string(value) + " is not a multiple of 32");
  }
  return value;
}

std::vector<float> Vector(const GgufFile& file, const std::string& name, int64_t size) {
  const std::array<int64_t, 1> shape = {size};
  const Tensor& tensor = file.Get(name, shape);
  if (tensor.type != TensorType::kF32) {
    file.Fail("tensor " + name + " is " + NameOf(tensor.type) + "; norms are F32");
  }
  std::vector<float> values(static_cast<size_t>(size));
  DequantizeRow(tensor.type, tensor.data, size, values.data());
  return values;
}

Matrix Weight(const GgufFile& file, const std::string& name, int64_t in, int64_t out,
              ThreadPool* pool) {
  const std::array<int64_t, 2> shape = {in, out};
  return Pack(file, file.Get(name, shape), pool);
}

Layer ReadLayer(const GgufFile& file, const Config& config, int64_t index, ThreadPool* pool) {
  const std::string prefix = "blk." + std::to_string(index) + ".";
  const int64_t hidden = config.hidden_size;
  const int64_t queries = config.q_heads * config.head_dim;
  const int64_t keys = config.kv_heads * config.head_dim;
  const auto weight = [&](const char* name, int64_t in, int64_t out) {
    return Weight(file, prefix + name + ".weight", in, out, pool);
  };
  const auto norm = [&](const char* name, int64_t size) {
    return Vector(file, prefix + name + ".weight", size);
  };
  Layer layer;
  layer.q = weight("attn_q", hidden, queries);
  layer.k = weight("attn_k", hidden, keys);
  layer.v = weight("attn_v", hidden, keys);
  layer.o = weight("attn_output", queries, hidden);
  layer.gate = weight("ffn_gate", hidden, config.intermediate_size);
  layer.up = weight("ffn_up", hidden, config.intermediate_size);
  layer.down = weight("ffn_down", config.intermediate_size, hidden);
  layer.attention_norm = norm("attn_norm", hidden);
  layer.post_attention_norm = norm("post_attention_norm", hidden);
  layer.ffn_norm = norm("ffn_norm", hidden);
  layer.post_ffn_norm = norm("post_ffw_norm", hidden);
  layer.q_norm = norm("attn_q_norm", config.head_dim);
  layer.k_norm = norm("attn_k_norm", config.head_dim);
  return layer;
}

// A model in several files: only the first one has the metadata, and none has all tensors.
void CheckWhole(const GgufFile& file) {
  if (!file.Has("split.count") || file.Integer("split.count") <= 1) {
    return;
  }
  const int64_t part = file.Has("split.no") ? file.Integer("split.no") + 1 : 1;
  file.Fail("is part " + std::to_string(part) + " of " +
            std::to_string(file.Integer("split.count")) +
            " of a split model; this program takes one file: llama-gguf-split --merge makes it");
}

// The tokenizer must have a text for each token that the model can give, and no others. A file
// without a tokenizer can be run on token ids.
void CheckVocabulary(const GgufFile& file, int64_t vocab_size) {
  const std::string key = "tokenizer.ggml.tokens";
  if (file.Has(key) && file.ArraySize(key) != vocab_size) {
    file.Fail("the vocabulary " + key + " has " + std::to_string(file.ArraySize(key)) +
              " tokens, but the embedding token_embd.weight " + std::to_string(vocab_size));
  }
}

std::vector<int32_t> ReadStopTokens(const GgufFile& file, int64_t vocab_size) {
  std::vector<int32_t> tokens;
  const auto add = [&](const std::string& key, int64_t token) {
    if (token < 0 || token >= vocab_size) {
      file.Fail(key + " has " + std::to_string(token) + ", which is not in 0.." +
                std::to_string(vocab_size - 1));
    }
    const auto id = static_cast<int32_t>(token);
    if (std::find(tokens.begin(), tokens.end(), id) == tokens.end()) {
      tokens.push_back(id);
    }
  };
  const std::string prefix = "tokenizer.ggml.";
  add(prefix + "eos_token_id", file.Integer(prefix + "eos_token_id"));
  for (const char* name : {"eot_token_id", "eom_token_id"}) {  // end of a turn, of a message
    if (file.Has(prefix + name)) {
      add(prefix + name, file.Integer(prefix + name));
    }
  }
  if (file.Has(prefix + "eos_token_ids")) {
    for (const int64_t token : file.Integers(prefix + "eos_token_ids")) {
      add(prefix + "eos_token_ids", token);
    }
  }
  return tokens;
}

WeightView ReadEmbedding(const GgufFile& file, const Config& config) {
  if (file.Find("output.weight") != nullptr) {
    file.Fail("tensor output.weight: an LM head apart from the embedding is not Gemma 3's");
  }
  const std::array<int64_t, 2> shape = {config.hidden_size, config.vocab_size};
  const Tensor& tensor = file.Get("token_embd.weight", shape);
  if (tensor.type != TensorType::kQ8_0) {
    file.Fail("tensor token_embd.weight is " + NameOf(tensor.type) +
              "; this program takes an embedding in Q8_0");
  }
  WeightView view;
  view.data = tensor.data;
  view.format = WeightFormat::kQ8_0;
  view.rows = config.vocab_size;
  view.cols = config.hidden_size;
  view.row_stride = config.hidden_size / kQ8Block;
  view.col_stride = 1;
  return view;
}

}  // namespace

Config ReadConfig(const GgufFile& file) {
  CheckWhole(file);
  const std::string_view architecture = file.String("general.architecture");
  if (architecture != "gemma3") {
    file.Fail("general.architecture is '" + Printable(architecture) +
              "'; this program runs gemma3");
  }
  constexpr int64_t kMost = 1 << 20;
  Config config;
  config.hidden_size = MultipleOf32(file, "gemma3.embedding_length", kMost);
  config.layers = Number(file, "gemma3.block_count", 1, 1000);
  config.intermediate_size = MultipleOf32(file, "gemma3.feed_forward_length", kMost);
  config.q_heads = Number(file, "gemma3.attention.head_count", 1, 1024);
  config.kv_heads = Number(file, "gemma3.attention.head_count_kv", 1, config.q_heads);
  config.head_dim = MultipleOf32(file, "gemma3.attention.key_length", 512);
  if (config.q_heads % config.kv_heads != 0) {
    file.Fail("gemma3.attention.head_count is no multiple of gemma3.attention.head_count_kv");
  }
  if (file.Integer("gemma3.attention.value_length") != config.head_dim) {
    file.Fail("gemma3.attention.value_length is not gemma3.attention.key_length");
  }
  // 27B scales queries by another number than 1 / sqrt(head_dim), which the file does not tell.
  if (config.layers == 62) {
    file.Fail("gemma3.block_count = 62: Gemma 3 27B is not supported");
  }
  for (const char* key : {"gemma3.final_logit_softcapping", "gemma3.attn_logit_softcapping"}) {
    if (file.Has(key)) {
      file.Fail(std::string(key) + " is not supported");
    }
  }
  if (file.Has("gemma3.rope.scaling.type") && file.String("gemma3.rope.scaling.type") != "none") {
    file.Fail("gemma3.rope.scaling.type is not supported");
  }
  config.context_length = Number(file, "gemma3.context_length", 1, kMost);
  config.sliding_window = Number(file, "gemma3.attention.sliding_window", 1, kMost);
  config.rms_epsilon = Positive(file, "gemma3.attention.layer_norm_rms_epsilon");
  config.rope_base_global = Positive(file, "gemma3.rope.freq_base");
  const Tensor* embedding = file.Find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    file.Fail("there is no matrix token_embd.weight");
  }
  config.vocab_size = embedding->shape[1];
  config.bos_token =
      static_cast<int32_t>(Number(file, "tokenizer.ggml.bos_token_id", 0, config.vocab_size - 1));
  config.stop_tokens = ReadStopTokens(file, config.vocab_size);
  CheckVocabulary(file, config.vocab_size);
  return config;
}

int64_t Weights::bytes() const {
  int64_t bytes = embedding.rows * embedding.row_stride * kQ8BlockBytes;
  for (const Layer& layer : layers) {
    for (const Matrix* matrix :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      bytes += matrix->bytes();
    }
  }
  return bytes;
}

Model::Model(const GgufFile& file, ThreadPool* pool)
    : file_(file), config_(ReadConfig(file)), weights_(std::make_unique<Weights>()) {
  weights_->embedding = ReadEmbedding(file_, config_);
  weights_->output_norm = Vector(file_, "output_norm.weight", config_.hidden_size);
  for (int64_t i = 0; i < config_.layers; ++i) {
    weights_->layers.push_back(ReadLayer(file_, config_, i, pool));
  }
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;

}  // namespace riffle::engine
