// A Gemma 3 model that is small enough for tests, with random weights of every type that the engine
// supports.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/model.h"
#include "testing/gguf_writer.h"

namespace riffle::testing {

// The bytes of a tensor with random weights of about `size` each, as a file holds them.
inline std::string RandomTensor(engine::TensorType type, int64_t values, float size,
                                std::mt19937& random) {
  using engine::TensorType;
  std::string bytes;
  const auto byte = [&] { return static_cast<char>(random() & 255); };
  // The bits of an f16 scale near `size` with a random fraction.
  const auto half = [&](float scale) {
    int exponent = 0;
    std::frexp(scale, &exponent);
    return GgufWriter::Raw(static_cast<uint16_t>((exponent + 14) << 10 | (random() & 1023)));
  };
  const auto negative = [](std::string raw) {
    raw[1] = static_cast<char>(raw[1] ^ 0x80);
    return raw;
  };
  // Two scales; the second is always drawn first. In half(first) + half(second) the order would
  // depend on the compiler, but tests expect certain contents of the file.
  const auto halves = [&](float first, float second) {
    const std::string last = half(second);
    return half(first) + last;
  };
  const auto half_and_negative = [&](float first, float second) {
    const std::string last = negative(half(second));
    return half(first) + last;
  };
  if (type == TensorType::kF32) {
    for (int64_t i = 0; i < values; ++i) {
      bytes += GgufWriter::Raw(0.5f + static_cast<float>(random() & 1023) / 1024.0f);
    }
    return bytes;
  }
  const engine::BlockSize block = engine::BlockSizeOf(type);
  for (int64_t i = 0; i < values; i += block.values) {
    std::string scales, rest;  // bytes before and after the random ones
    switch (type) {
      case TensorType::kF16:
      case TensorType::kBF16: {
        const uint32_t sign = static_cast<uint32_t>(random() & 1) << 15;
        const uint32_t bits = type == TensorType::kF16 ? 0x2c00 | (random() & 0x7ff)  // 1/16 to 1/4
                                                       : 0x3d80 | (random() & 0xff);
        scales = GgufWriter::Raw(static_cast<uint16_t>(sign | bits));
        break;
      }
      case TensorType::kQ8_0:
      case TensorType::kIQ4_NL:
        scales = half(size / 128);
        break;
      case TensorType::kQ4_0:
        scales = half(size / 8);
        break;
      case TensorType::kQ5_0:
        scales = half(size / 16);
        break;
      case TensorType::kQ4_1:
        scales = half_and_negative(size / 8, size);
        break;
      case TensorType::kQ5_1:
        scales = half_and_negative(size / 16, size);
        break;
      case TensorType::kQ4_K:
        scales = halves(size / 256, size / 512);
        break;
      case TensorType::kQ5_K:
        scales = halves(size / 512, size / 512);
        break;
      case TensorType::kQ2_K:
        rest = halves(size / 16, size / 16);
        break;
      case TensorType::kQ3_K:
        rest = half(size / 64);
        break;
      default:
        rest = half(size / 1024);
        break;
    }
    bytes += scales;
    for (size_t j = scales.size() + rest.size(); j < static_cast<size_t>(block.bytes); ++j) {
      bytes += byte();
    }
    bytes += rest;
  }
  return bytes;
}

// All types, one after another.
inline constexpr engine::TensorType kAllTypes[] = {
    engine::TensorType::kF32,  engine::TensorType::kF16,   engine::TensorType::kBF16,
    engine::TensorType::kQ4_0, engine::TensorType::kQ4_1,  engine::TensorType::kQ5_0,
    engine::TensorType::kQ5_1, engine::TensorType::kQ8_0,  engine::TensorType::kQ2_K,
    engine::TensorType::kQ3_K, engine::TensorType::kQ4_K,  engine::TensorType::kQ5_K,
    engine::TensorType::kQ6_K, engine::TensorType::kIQ4_NL};

// The file of a model of 8 query heads, 2 KV heads of 32 and 128 tokens of vocabulary, and the
// model. It has 7 layers, of which the sixth is global, unless a test asks for fewer.
class TinyModel {
 public:
  // `spike`: if not 0, the value of the first weights of the last norm. `more` adds metadata.
  // `stop_tokens`: a list in place of the one stop token.
  explicit TinyModel(
      int64_t window = 24, int64_t context = 256, float spike = 0,
      const std::function<void(GgufWriter&)>& more = [](GgufWriter&) {}, int layers = 7,
      const std::optional<std::vector<int32_t>>& stop_tokens = std::nullopt) {
    GgufWriter writer;
    writer.AddString("general.architecture", "gemma3");
    const auto number = [&](const char* key, uint32_t value) {
      writer.Add(key, GgufWriter::kU32, value);
    };
    number("gemma3.context_length", static_cast<uint32_t>(context));
    number("gemma3.embedding_length", 256);
    number("gemma3.block_count", static_cast<uint32_t>(layers));
    number("gemma3.feed_forward_length", 512);
    number("gemma3.attention.head_count", 8);
    number("gemma3.attention.head_count_kv", 2);
    number("gemma3.attention.key_length", 32);
    number("gemma3.attention.value_length", 32);
    number("gemma3.attention.sliding_window", static_cast<uint32_t>(window));
    writer.Add("gemma3.attention.layer_norm_rms_epsilon", GgufWriter::kF32, 1e-6f);
    writer.Add("gemma3.rope.freq_base", GgufWriter::kF32, 1e6f);
    number("tokenizer.ggml.bos_token_id", 2);
    if (const std::string key = "tokenizer.ggml.eos_token_id"; stop_tokens) {
      writer.AddArray(key, GgufWriter::kI32, *stop_tokens);
    } else {
      number(key.c_str(), 1);
    }
    more(writer);
    using engine::TensorType;
    Add(writer, "token_embd", {256, 128}, TensorType::kQ8_0);
    const size_t last_norm = data_.size();
    Add(writer, "output_norm", {256}, TensorType::kF32);
    for (size_t i = 0; spike != 0 && i < 8; ++i) {
      data_.replace(last_norm + i * sizeof(float), sizeof(float), GgufWriter::Raw(spike));
    }
    for (int layer = 0; layer < layers; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      const bool odd = layer % 2 == 1;
      Add(writer, prefix + "attn_q", {256, 256}, TensorType::kQ5_0);
      Add(writer, prefix + "attn_k", {256, 64}, TensorType::kQ5_0);
      Add(writer, prefix + "attn_v", {256, 64}, odd ? TensorType::kQ8_0 : TensorType::kQ5_0);
      Add(writer, prefix + "attn_output", {256, 256}, TensorType::kQ4_K);
      Add(writer, prefix + "ffn_gate", {256, 512}, TensorType::kQ5_0);
      Add(writer, prefix + "ffn_up", {256, 512}, TensorType::kQ5_0);
      Add(writer, prefix + "ffn_down", {512, 256}, odd ? TensorType::kQ6_K : TensorType::kQ4_K);
      for (const char* norm : {"attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"}) {
        Add(writer, prefix + norm, {256}, TensorType::kF32);
      }
      Add(writer, prefix + "attn_q_norm", {32}, TensorType::kF32);
      Add(writer, prefix + "attn_k_norm", {32}, TensorType::kF32);
    }
    bytes_ = writer.Finish(data_);
    model_ = std::make_unique<engine::Model>(engine::GgufFile::Parse(bytes_, "tiny"));
  }

  const engine::Model& model() const { return *model_; }

 private:
  void Add(GgufWriter& writer, const std::string& name, const std::vector<int64_t>& shape,
           engine::TensorType type) {
    writer.AddTensor(name + ".weight", shape, static_cast<uint32_t>(type), data_.size());
    const int64_t values = shape[0] * (shape.size() == 2 ? shape[1] : 1);
    data_ += RandomTensor(type, values, 0.1f, random_);
    data_.resize((data_.size() + 31) / 32 * 32);
  }

  std::mt19937 random_{20250314};
  std::string data_;
  std::vector<uint8_t> bytes_;
  std::unique_ptr<engine::Model> model_;
};

}  // namespace riffle::testing
