#include "engine/arch/spec_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace riffle::engine {
namespace {

std::vector<int32_t> ReadStopTokens(const GgufFile& file, int64_t vocab_size) {
  std::vector<int32_t> tokens;
  const auto add = [&](const std::string& key, int64_t token) {
    if (token < 0 || token >= vocab_size) {
      file.Fail(fmt::format("{} has {}, which is not in 0..{}", key, token, vocab_size - 1));
    }
    const auto id = static_cast<int32_t>(token);
    if (std::find(tokens.begin(), tokens.end(), id) == tokens.end()) {
      tokens.push_back(id);
    }
  };
  const std::string prefix = "tokenizer.ggml.";
  // The tokens that end a text (every file names one), a turn, a message, and others.
  for (const char* name : {"eos_token_id", "eot_token_id", "eom_token_id", "eos_token_ids"}) {
    const std::string key = prefix + name;
    if (name == std::string_view("eos_token_id") || file.Has(key)) {
      for (const int64_t token : file.IntegerOrIntegers(key)) {
        add(key, token);
      }
    }
  }
  if (tokens.empty()) {
    file.Fail(fmt::format("metadata \"{}eos_token_id\" is an empty list", prefix));
  }
  return tokens;
}

}  // namespace

SpecReader::SpecReader(const GgufFile& file)
    : file_(file), architecture_(file.String("general.architecture")) {}

void SpecReader::Fail(const std::string& name, const std::string& text) const {
  file_.Fail(Key(name) + " " + text);
}

int64_t SpecReader::Number(const std::string& name, int64_t min, int64_t max) const {
  const int64_t value = file_.Integer(Key(name));
  if (value < min || value > max) {
    Fail(name, fmt::format("= {} is not in {}..{}", value, min, max));
  }
  return value;
}

int64_t SpecReader::MultipleOf32(const std::string& name, int64_t max) const {
  const int64_t value = Number(name, 32, max);
  if (value % 32 != 0) {
    Fail(name, fmt::format("= {} is not a multiple of 32", value));
  }
  return value;
}

double SpecReader::Positive(const std::string& name) const {
  const double value = file_.Float(Key(name));
  if (!(value > 0 && value < 1e30)) {
    Fail(name, fmt::format("= {} is not a positive number", value));
  }
  return value;
}

std::optional<float> SpecReader::OptionalPositive(const std::string& name) const {
  return Has(name) ? std::optional(static_cast<float>(Positive(name))) : std::nullopt;
}

std::vector<bool> SpecReader::WindowedLayers(int64_t layers, int64_t period) const {
  if (const char* name = "attention.sliding_window_pattern"; Has(name)) {
    period = Number(name, 0, kMaxSize);
  }
  std::vector<bool> windowed;
  for (int64_t i = 0; i < layers; ++i) {
    windowed.push_back(period == 0 || (i + 1) % period != 0);
  }
  return windowed;
}

void SpecReader::RefuseNumber(const std::string& name) const {
  if (Has(name) && file_.Integer(Key(name)) != 0) {
    Fail(name, fmt::format("= {} is not supported", file_.Integer(Key(name))));
  }
}

void SpecReader::ReadHeads(ModelSpec& spec) const {
  spec.q_heads = Number("attention.head_count", 1, 1024);
  spec.kv_heads = Has("attention.head_count_kv")
                      ? Number("attention.head_count_kv", 1, spec.q_heads)
                      : spec.q_heads;
  if (spec.q_heads % spec.kv_heads != 0) {
    Fail("attention.head_count", fmt::format("= {} is no multiple of {} = {}", spec.q_heads,
                                             Key("attention.head_count_kv"), spec.kv_heads));
  }
  constexpr int64_t kMaxHeadDim = 512;
  if (Has("attention.key_length")) {
    spec.head_dim = MultipleOf32("attention.key_length", kMaxHeadDim);
  } else {
    spec.head_dim = spec.hidden_size / spec.q_heads;
    if (spec.head_dim * spec.q_heads != spec.hidden_size || spec.head_dim % 32 != 0 ||
        spec.head_dim > kMaxHeadDim) {
      Fail("attention.head_count",
           fmt::format("= {} makes heads of {} / {} values, not a multiple of 32 up to {}",
                       spec.q_heads, spec.hidden_size, spec.q_heads, kMaxHeadDim));
    }
  }
  for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
    if (Has(name) && file_.Integer(Key(name)) != spec.head_dim) {
      Fail(name, fmt::format("= {} is not the size of a head, {}", file_.Integer(Key(name)),
                             spec.head_dim));
    }
  }
}

// The tokenizer must have a text for each token that the model can give, and no others. A file
// without a tokenizer can be run on token ids.
void SpecReader::ReadVocabulary(ModelSpec& spec) const {
  spec.embedding = "token_embd.weight";
  spec.head = file_.Find("output.weight") != nullptr ? "output.weight" : spec.embedding;
  const Tensor* embedding = file_.Find(spec.embedding);
  if (embedding == nullptr || embedding->shape.size() != 2) {
    file_.Fail("there is no matrix " + spec.embedding);
  }
  spec.vocab_size = embedding->shape[1];
  constexpr int64_t kMaxVocabulary = std::numeric_limits<int32_t>::max();
  if (embedding->shape[0] != spec.hidden_size || spec.vocab_size < 1 ||
      spec.vocab_size > kMaxVocabulary) {
    file_.Fail(fmt::format("tensor \"{}\" is of shape [{}, {}], not [{}, the number of tokens]",
                           spec.embedding, embedding->shape[0], spec.vocab_size, spec.hidden_size));
  }
  const std::string key = "tokenizer.ggml.tokens";
  if (file_.Has(key) && file_.ArraySize(key) != spec.vocab_size) {
    file_.Fail(fmt::format("the vocabulary {} has {} tokens, but the embedding {} {}", key,
                           file_.ArraySize(key), spec.embedding, spec.vocab_size));
  }
  spec.stop_tokens = ReadStopTokens(file_, spec.vocab_size);
}

LayerTensors SpecReader::Tensors(int64_t layer) const {
  const std::string prefix = fmt::format("blk.{}.", layer);
  const auto weight = [&](const char* name) { return prefix + name + ".weight"; };
  const auto bias = [&](const char* name) {
    const std::string full = prefix + name + ".bias";
    return file_.Find(full) != nullptr ? full : "";
  };
  LayerTensors tensors;
  tensors.q = weight("attn_q");
  tensors.k = weight("attn_k");
  tensors.v = weight("attn_v");
  tensors.o = weight("attn_output");
  tensors.q_bias = bias("attn_q");
  tensors.k_bias = bias("attn_k");
  tensors.v_bias = bias("attn_v");
  tensors.o_bias = bias("attn_output");
  tensors.gate = weight("ffn_gate");
  tensors.up = weight("ffn_up");
  tensors.down = weight("ffn_down");
  tensors.attention_norm = weight("attn_norm");
  tensors.ffn_norm = weight("ffn_norm");
  return tensors;
}

ModelSpec SpecReader::ReadCommon() const {
  ModelSpec spec;
  spec.architecture = architecture_;
  spec.hidden_size = MultipleOf32("embedding_length", kMaxSize);
  const int64_t layers = Number("block_count", 1, 1000);
  spec.intermediate_size = MultipleOf32("feed_forward_length", kMaxSize);
  ReadHeads(spec);
  spec.context_length = Number("context_length", 1, kMaxSize);
  spec.rms_epsilon = static_cast<float>(Positive("attention.layer_norm_rms_epsilon"));
  RefuseNumber("expert_count");
  if (!file_.BoolOr(Key("attention.causal"), true)) {
    Fail("attention.causal", "= false: the model embeds texts and does not continue them");
  }
  ReadVocabulary(spec);
  spec.output_norm = "output_norm.weight";
  for (int64_t i = 0; i < layers; ++i) {
    LayerSpec layer;
    layer.tensors = Tensors(i);
    layer.attention_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(spec.head_dim)));
    spec.layers.push_back(layer);
  }
  return spec;
}

void SpecReader::ReadYarn(RopeSpec& rope) const {
  const double factor = Positive("rope.scaling.factor");
  if (factor < 1) {
    Fail("rope.scaling.factor", fmt::format("= {} is below 1; YaRN needs at least 1", factor));
  }
  const auto or_default = [&](const char* name, double value) {
    return Has(name) ? Positive(name) : value;
  };
  RopeSpec::Yarn yarn = {
      static_cast<double>(Number("rope.scaling.original_context_length", 1, kMaxSize))};
  yarn.beta_fast = or_default("rope.scaling.yarn_beta_fast", yarn.beta_fast);
  yarn.beta_slow = or_default("rope.scaling.yarn_beta_slow", yarn.beta_slow);
  if (yarn.beta_fast <= yarn.beta_slow) {
    Fail("rope.scaling.yarn_beta_fast",
         fmt::format("= {} is not above yarn_beta_slow = {}", yarn.beta_fast, yarn.beta_slow));
  }
  rope.yarn = yarn;
  rope.scale = 1 / factor;
  rope.magnitude = 1 + 0.1 * std::log(factor);
}

void SpecReader::ReadLongRope(RopeSpec& rope) const {
  rope.factors = "rope_factors_long.weight";
  rope.short_factors = "rope_factors_short.weight";
  for (const std::string& tensor : {rope.factors, rope.short_factors}) {
    if (file_.Find(tensor) == nullptr) {
      Fail("rope.scaling.type",
           "= 'longrope' needs the tensor " + tensor + ", which the file does not have");
    }
  }
  const char* original = "rope.scaling.original_context_length";
  rope.original_context = Number(Has(original) ? original : "context_length", 1, kMaxSize);
  if (Has("rope.scaling.factor")) {  // applies in addition to the factors, as in llama.cpp
    rope.scale = 1 / Positive("rope.scaling.factor");
  }
}

RopeSpec SpecReader::ReadRope() const {
  RopeSpec rope;
  if (Has("rope.freq_base")) {
    rope.base = Positive("rope.freq_base");
  }
  const bool typed = Has("rope.scaling.type");
  // Older files state no type; if they scale, they do so linearly, some under another key.
  const std::string kind =
      typed ? std::string(file_.String(Key("rope.scaling.type"))) : std::string("linear");
  if (kind == "linear") {
    const bool old = Has("rope.scale_linear") && !Has("rope.scaling.factor");
    const std::string factor = old ? "rope.scale_linear" : "rope.scaling.factor";
    if (typed || Has(factor)) {
      rope.scale = 1 / Positive(factor);
    }
  } else if (kind == "yarn") {
    ReadYarn(rope);
  } else if (kind == "longrope") {
    ReadLongRope(rope);
  } else if (kind != "none") {
    Fail("rope.scaling.type",
         "= '" + Printable(kind) + "' is not supported; none, linear, yarn and longrope are");
  }
  if (Has("rope.scaling.attn_factor")) {
    rope.magnitude *= Positive("rope.scaling.attn_factor");
  }
  if (kind != "longrope" && file_.Find("rope_freqs.weight") != nullptr) {
    rope.factors = "rope_freqs.weight";
  }
  return rope;
}

}  // namespace riffle::engine
