// What the files of architectures have in common: checked reads of metadata, and the sizes and
// tensor names that most of them share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/arch/model_spec.h"
#include "engine/gguf/gguf.h"

namespace riffle::engine {

// Keys are named without the architecture: "block_count" is "llama.block_count" in a Llama. All
// functions throw BadModel, naming key and value.
class SpecReader {
 public:
  explicit SpecReader(const GgufFile& file);

  const std::string& architecture() const { return architecture_; }
  const GgufFile& file() const { return file_; }
  std::string Key(const std::string& name) const { return architecture_ + "." + name; }
  bool Has(const std::string& name) const { return file_.Has(Key(name)); }
  [[noreturn]] void Fail(const std::string& name, const std::string& text) const;

  int64_t Number(const std::string& name, int64_t min, int64_t max) const;
  int64_t MultipleOf32(const std::string& name, int64_t max) const;
  double Positive(const std::string& name) const;
  std::optional<float> OptionalPositive(const std::string& name) const;
  // Which layers see a window: all but every P-th, where P is attention.sliding_window_pattern, or
  // `period` if the file lacks that key; P = 0: all layers.
  std::vector<bool> WindowedLayers(int64_t layers, int64_t period) const;
  // Throws if the key exists and is not 0, because the feature it turns on is not supported.
  void RefuseNumber(const std::string& name) const;

  // Everything except ropes, the layers' windows, scales and activations, and what few
  // architectures have. A layer has the tensors of attention, of a gated feed-forward network, of
  // the norms before both, and the biases that the file has. attention_scale is 1 / sqrt(head_dim).
  ModelSpec ReadCommon() const;
  // RoPE with base `rope.freq_base` and scaling of the kinds none, linear, YaRN, LongRoPE and,
  // where there is a tensor rope_freqs.weight, by its factors.
  RopeSpec ReadRope() const;

 private:
  void ReadHeads(ModelSpec& spec) const;
  void ReadVocabulary(ModelSpec& spec) const;
  void ReadYarn(RopeSpec& rope) const;
  void ReadLongRope(RopeSpec& rope) const;
  LayerTensors Tensors(int64_t layer) const;

  const GgufFile& file_;
  std::string architecture_;
};

constexpr int64_t kMaxSize = 1 << 20;  // limit of hidden sizes, contexts and windows

}  // namespace riffle::engine
