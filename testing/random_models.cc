#include "testing/random_models.h"

#include <cmath>
#include <functional>
#include <iterator>
#include <random>
#include <stdexcept>

#include "engine/gguf/gguf.h"
#include "testing/gguf_writer.h"
#include "testing/tiny_model.h"

namespace riffle::testing {
namespace {

using engine::TensorType;

constexpr int64_t kVocab = 128;

struct Kind {
  std::string name;
  std::string architecture;
  int64_t layers = 3;
  int64_t hidden = 256;
  int64_t q_heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 64;
  bool tied = true;
  bool qkv_bias = false;
  bool qk_norms = false;
  bool post_norms = false;
  std::function<void(GgufWriter&)> metadata = [](GgufWriter&) {};
  std::vector<float> rope_factors = {};
  std::vector<float> long_factors = {}, short_factors = {};  // for LongRoPE
  bool all_types = false;  // every weight has another type than the one before it
};

// Llama 3's factors for angles of base 10000: 8 for long waves, 1 for short ones, and values
// between for waves with 1 to 4 turns in the 32 tokens of the original context.
std::vector<float> Llama3Factors(int64_t head_dim) {
  std::vector<float> factors;
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    const double turns = 32 / (2 * M_PI * std::pow(10000.0, exponent));
    const double smooth = (turns - 1) / (4 - 1);
    const double factor = turns < 1 ? 8 : turns > 4 ? 1 : 1 / ((1 - smooth) / 8 + smooth);
    factors.push_back(static_cast<float>(factor));
  }
  return factors;
}

// Factors that rise to `last` in uneven steps, like those that LongRoPE's search finds.
std::vector<float> RisingFactors(int64_t head_dim, float last) {
  std::vector<float> factors;
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const auto way = static_cast<float>(i / 3 * 3) / static_cast<float>(half - 1);
    factors.push_back(1 + (last - 1) * way * way);
  }
  return factors;
}

std::vector<Kind> Kinds() {
  std::vector<Kind> kinds;
  // SmolLM2's heads: nine query heads on three KV heads.
  kinds.push_back(
      {.name = "llama", .architecture = "llama", .hidden = 576, .q_heads = 9, .kv_heads = 3});
  kinds.push_back({.name = "llama-untied-biased",
                   .architecture = "llama",
                   .head_dim = 32,
                   .tied = false,
                   .qkv_bias = true,
                   .metadata = [](GgufWriter& writer) {
                     writer.AddString("llama.rope.scaling.type", "linear");
                     writer.Add("llama.rope.scaling.factor", GgufWriter::kF32, 4.0f);
                   }});
  kinds.push_back({.name = "llama3",
                   .architecture = "llama",
                   .head_dim = 64,
                   .tied = false,
                   .rope_factors = Llama3Factors(64)});
  kinds.push_back({.name = "llama-formats",
                   .architecture = "llama",
                   .layers = 6,
                   .tied = false,
                   .all_types = true});
  kinds.push_back(
      {.name = "llama-yarn", .architecture = "llama", .metadata = [](GgufWriter& writer) {
         writer.AddString("llama.rope.scaling.type", "yarn");
         writer.Add("llama.rope.scaling.factor", GgufWriter::kF32, 4.0f);
         writer.Add("llama.rope.scaling.original_context_length", GgufWriter::kU32, uint32_t{64});
         writer.Add("llama.rope.scaling.yarn_beta_fast", GgufWriter::kF32, 8.0f);
       }});
  kinds.push_back({.name = "llama-longrope",
                   .architecture = "llama",
                   .tied = false,
                   .metadata =
                       [](GgufWriter& writer) {
                         const std::string scaling = "llama.rope.scaling.";
                         writer.AddString(scaling + "type", "longrope");
                         writer.Add(scaling + "original_context_length", GgufWriter::kU32,
                                    uint32_t{64});
                         // The value for four times the context: sqrt(1 + ln(4) / ln(64)).
                         writer.Add(scaling + "attn_factor", GgufWriter::kF32, 1.1547005f);
                       },
                   .long_factors = RisingFactors(64, 12),
                   .short_factors = RisingFactors(64, 1.5f)});
  kinds.push_back({.name = "qwen2", .architecture = "qwen2", .tied = false, .qkv_bias = true});
  kinds.push_back({.name = "qwen3", .architecture = "qwen3", .head_dim = 96, .qk_norms = true});
  kinds.push_back({.name = "gemma2",
                   .architecture = "gemma2",
                   .layers = 4,
                   .tied = false,
                   .post_norms = true,
                   .metadata = [](GgufWriter& writer) {
                     const auto number = GgufWriter::kF32;
                     writer.Add("gemma2.attention.sliding_window", GgufWriter::kU32, uint32_t{24});
                     writer.Add("gemma2.attn_logit_softcapping", number, 3.0f);
                     writer.Add("gemma2.final_logit_softcapping", number, 4.0f);
                   }});
  kinds.push_back({.name = "gemma3",
                   .architecture = "gemma3",
                   .layers = 7,
                   .tied = false,
                   .qk_norms = true,
                   .post_norms = true,
                   .metadata = [](GgufWriter& writer) {
                     writer.Add("gemma3.attention.sliding_window", GgufWriter::kU32, uint32_t{24});
                     writer.AddString("gemma3.rope.scaling.type", "linear");
                     writer.Add("gemma3.rope.scaling.factor", GgufWriter::kF32, 8.0f);
                   }});
  return kinds;
}

class ModelWriter {
 public:
  explicit ModelWriter(const Kind& kind)
      : kind_(kind), random_(static_cast<uint32_t>(kind.name.size() * 7919 + kind.q_heads)) {}

  std::vector<uint8_t> Write() {
    WriteMetadata();
    Weight("token_embd", kind_.hidden, kVocab, TensorType::kQ8_0);
    if (!kind_.tied) Weight("output", kind_.hidden, kVocab, TensorType::kQ8_0);
    Vector("output_norm.weight", kind_.hidden, 1);
    if (!kind_.rope_factors.empty()) Add("rope_freqs.weight", kind_.rope_factors);
    if (!kind_.long_factors.empty()) {
      Add("rope_factors_long.weight", kind_.long_factors);
      Add("rope_factors_short.weight", kind_.short_factors);
    }
    for (int64_t layer = 0; layer < kind_.layers; ++layer) {
      WriteLayer("blk." + std::to_string(layer) + ".", layer);
    }
    return writer_.Finish(data_);
  }

 private:
  static constexpr int64_t kInner = 512;

  void WriteMetadata() {
    const auto number = [&](const std::string& name, int64_t value) {
      writer_.Add(kind_.architecture + "." + name, GgufWriter::kU32, static_cast<uint32_t>(value));
    };
    writer_.AddString("general.architecture", kind_.architecture);
    number("context_length", 256);
    number("embedding_length", kind_.hidden);
    number("block_count", kind_.layers);
    number("feed_forward_length", kInner);
    number("attention.head_count", kind_.q_heads);
    number("attention.head_count_kv", kind_.kv_heads);
    number("attention.key_length", kind_.head_dim);
    number("attention.value_length", kind_.head_dim);
    writer_.Add(kind_.architecture + ".attention.layer_norm_rms_epsilon", GgufWriter::kF32, 1e-5f);
    writer_.Add(kind_.architecture + ".rope.freq_base", GgufWriter::kF32, 10000.0f);
    writer_.Add("tokenizer.ggml.bos_token_id", GgufWriter::kU32, uint32_t{1});
    writer_.Add("tokenizer.ggml.eos_token_id", GgufWriter::kU32, uint32_t{2});
    kind_.metadata(writer_);
  }

  void WriteLayer(const std::string& prefix, int64_t layer) {
    const int64_t queries = kind_.q_heads * kind_.head_dim;
    const int64_t keys = kind_.kv_heads * kind_.head_dim;
    const auto wide = layer % 2 == 0 ? TensorType::kQ4_K : TensorType::kQ6_K;
    const auto narrow = kind_.hidden % 256 == 0 ? wide : TensorType::kQ5_0;  // blocks of 32
    Weight(prefix + "attn_q", kind_.hidden, queries, TensorType::kQ5_0);
    Weight(prefix + "attn_k", kind_.hidden, keys, narrow);
    Weight(prefix + "attn_v", kind_.hidden, keys, TensorType::kQ8_0);
    Weight(prefix + "attn_output", queries, kind_.hidden, TensorType::kQ8_0);
    Weight(prefix + "ffn_gate", kind_.hidden, kInner, narrow);
    Weight(prefix + "ffn_up", kind_.hidden, kInner, TensorType::kQ5_0);
    Weight(prefix + "ffn_down", kInner, kind_.hidden, wide);
    Vector(prefix + "attn_norm.weight", kind_.hidden, 1);
    Vector(prefix + "ffn_norm.weight", kind_.hidden, 1);
    if (kind_.qk_norms) {
      Vector(prefix + "attn_q_norm.weight", kind_.head_dim, 1);
      Vector(prefix + "attn_k_norm.weight", kind_.head_dim, 1);
    }
    if (kind_.post_norms) {
      Vector(prefix + "post_attention_norm.weight", kind_.hidden, 1);
      Vector(prefix + "post_ffw_norm.weight", kind_.hidden, 1);
    }
    if (kind_.qkv_bias) {
      Vector(prefix + "attn_q.bias", queries, 0);
      Vector(prefix + "attn_k.bias", keys, 0);
      Vector(prefix + "attn_v.bias", keys, 0);
    }
  }

  void Weight(const std::string& name, int64_t in, int64_t out, TensorType type) {
    if (kind_.all_types) type = kAllTypes[next_type_++ % std::size(kAllTypes)];
    std::string bytes = RandomTensor(type, in * out, 0.1f, random_);
    if (type == TensorType::kF32) bytes = RandomFloats(in * out);  // of both signs
    Place(name + ".weight", {in, out}, type, bytes);
  }
  std::string RandomFloats(int64_t values) {
    std::string bytes;
    for (int64_t i = 0; i < values; ++i) {
      bytes += GgufWriter::Raw((static_cast<float>(random_() & 0xffff) - 0x8000) * 0x1p-18f);
    }
    return bytes;
  }
  // Adds a vector of numbers up to 0.5 away from `middle`.
  void Vector(const std::string& name, int64_t size, float middle) {
    std::vector<float> values;
    for (int64_t i = 0; i < size; ++i) {
      values.push_back(middle + (static_cast<float>(random_() & 1023) - 512) / 1024);
    }
    Add(name, values);
  }
  void Add(const std::string& name, const std::vector<float>& values) {
    std::string bytes;
    for (const float value : values) bytes += GgufWriter::Raw(value);
    Place(name, {static_cast<int64_t>(values.size())}, TensorType::kF32, bytes);
  }
  void Place(const std::string& name, const std::vector<int64_t>& shape, TensorType type,
             const std::string& bytes) {
    writer_.AddTensor(name, shape, static_cast<uint32_t>(type), data_.size());
    data_ += bytes;
    data_.resize((data_.size() + 31) / 32 * 32);
  }

  const Kind& kind_;
  std::mt19937 random_;
  GgufWriter writer_;
  std::string data_;
  size_t next_type_ = 12;  // Q6_K: the embedding's type
};

}  // namespace

std::vector<std::string> RandomModelNames() {
  std::vector<std::string> names;
  for (const Kind& kind : Kinds()) names.push_back(kind.name);
  return names;
}

std::vector<uint8_t> RandomModelFile(const std::string& name) {
  for (const Kind& kind : Kinds()) {
    if (kind.name == name) return ModelWriter(kind).Write();
  }
  throw std::invalid_argument("there is no random model " + name);
}

std::vector<uint8_t> RandomFormatsFile() {
  GgufWriter writer;
  std::mt19937 random(5);
  std::string data;
  for (const TensorType type : kAllTypes) {
    writer.AddTensor(engine::NameOf(type), {512, 40}, static_cast<uint32_t>(type), data.size());
    data += RandomTensor(type, 512 * 40, 0.1f, random);
    data.resize((data.size() + 31) / 32 * 32);
  }
  return writer.Finish(data);
}

}  // namespace riffle::testing
