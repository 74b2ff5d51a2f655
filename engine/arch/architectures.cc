#include "engine/arch/architectures.h"

#include <fmt/format.h>

#include <set>
#include <string_view>

namespace riffle::engine {
namespace {

struct Architecture {
  std::string_view name;  // general.architecture
  ModelSpec (*read)(const SpecReader& reader);
};
constexpr Architecture kArchitectures[] = {
    {"gemma2", ReadGemma2}, {"gemma3", ReadGemma3}, {"llama", ReadLlama},
    {"qwen2", ReadQwen2},   {"qwen3", ReadQwen3},
};

// Rejects a model split into several files: only the first has the metadata, none has all tensors.
void CheckWhole(const GgufFile& file) {
  if (!file.Has("split.count") || file.Integer("split.count") <= 1) {
    return;
  }
  const int64_t part = file.Has("split.no") ? file.Integer("split.no") + 1 : 1;
  file.Fail(fmt::format(
      "is part {} of {} of a split model; this program takes one file: llama-gguf-split --merge "
      "makes it",
      part, file.Integer("split.count")));
}

// Rejects tensors that the spec does not name, such as experts of a mixture, or biases that the
// architecture usually lacks: without them the engine would run a different model.
void CheckTensors(const GgufFile& file, const ModelSpec& spec) {
  std::set<std::string_view> names = {spec.embedding,
                                      spec.head,
                                      spec.output_norm,
                                      "rope_freqs.weight",
                                      "rope_factors_long.weight",
                                      "rope_factors_short.weight"};
  for (const LayerSpec& layer : spec.layers) {
    const LayerTensors& t = layer.tensors;
    for (const std::string* name :
         {&t.q, &t.k, &t.v, &t.o, &t.q_bias, &t.k_bias, &t.v_bias, &t.o_bias, &t.gate, &t.up,
          &t.down, &t.attention_norm, &t.post_attention_norm, &t.ffn_norm, &t.post_ffn_norm,
          &t.q_norm, &t.k_norm}) {
      names.insert(*name);
    }
  }
  for (const Tensor& tensor : file.tensors()) {
    if (!names.contains(tensor.name)) {
      file.Fail(fmt::format(
          "has a tensor \"{}\", which no model of architecture {} with {} layers has: it may be "
          "of another kind",
          Printable(tensor.name), spec.architecture, spec.layer_count()));
    }
  }
}

}  // namespace

std::string ArchitectureNames() {
  std::string names;
  for (const Architecture& architecture : kArchitectures) {
    names += (names.empty() ? "" : ", ") + std::string(architecture.name);
  }
  return names;
}

ModelSpec ReadSpec(const GgufFile& file) {
  CheckWhole(file);
  const SpecReader reader(file);
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == reader.architecture()) {
      ModelSpec spec = architecture.read(reader);
      CheckTensors(file, spec);
      return spec;
    }
  }
  file.Fail(fmt::format("general.architecture is '{}'; this program runs {}",
                        Printable(reader.architecture()), ArchitectureNames()));
}

}  // namespace riffle::engine
