// Gemma 3 (text only). Five layers of six see a window and use RoPE with base 10000; the sixth sees
// everything, with the file's base and scaling (a file may state another number of layers, and
// another base for the window). The file's norm weights already include the 1 that Gemma adds to
// the checkpoint's.
//
// Source: Gemma Team, "Gemma 3 Technical Report" (2025).
#include <cmath>

#include "engine/arch/architectures.h"

namespace riffle::engine {

ModelSpec ReadGemma3(const SpecReader& reader) {
  constexpr int64_t kGlobalEvery = 6;  // layers
  constexpr int64_t kLayersOf27B = 62;
  ModelSpec spec = reader.ReadCommon();
  spec.embedding_scale = std::sqrt(static_cast<float>(spec.hidden_size));
  spec.logit_soft_cap = reader.OptionalPositive("final_logit_softcapping");
  RopeSpec local;
  local.base = reader.OptionalPositive("rope.freq_base_swa").value_or(10000.0f);
  spec.ropes = {local, reader.ReadRope()};
  const std::vector<bool> windowed = reader.WindowedLayers(spec.layer_count(), kGlobalEvery);
  const int64_t window = reader.Number("attention.sliding_window", 1, kMaxSize);
  const auto soft_cap = reader.OptionalPositive("attn_logit_softcapping");
  for (int64_t i = 0; i < spec.layer_count(); ++i) {
    LayerSpec& layer = spec.layers[static_cast<size_t>(i)];
    layer.rope = windowed[static_cast<size_t>(i)] ? 0 : 1;
    if (windowed[static_cast<size_t>(i)]) {
      layer.window = window;
    }
    layer.activation = Activation::kGelu;
    layer.attention_soft_cap = soft_cap;
    if (spec.layer_count() == kLayersOf27B) {  // another scale, which the file does not state
      layer.attention_scale =
          1.0f / std::sqrt(static_cast<float>(spec.hidden_size) / static_cast<float>(spec.q_heads));
    }
    const std::string prefix = "blk." + std::to_string(i) + ".";
    layer.tensors.q_norm = prefix + "attn_q_norm.weight";
    layer.tensors.k_norm = prefix + "attn_k_norm.weight";
    layer.tensors.post_attention_norm = prefix + "post_attention_norm.weight";
    layer.tensors.post_ffn_norm = prefix + "post_ffw_norm.weight";
  }
  return spec;
}

}  // namespace riffle::engine
