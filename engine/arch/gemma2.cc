// Gemma 2. Every other layer, starting with the first, sees a window; attention logits and output
// logits are soft-capped; outputs of attention and of the feed-forward network are normed too. The
// file's norm weights already include the 1 that Gemma adds to the checkpoint's.
//
// Source: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size" (2024).
#include <cmath>

#include "engine/arch/architectures.h"

namespace riffle::engine {

ModelSpec ReadGemma2(const SpecReader& reader) {
  constexpr int64_t kLayersOf27B = 46;
  ModelSpec spec = reader.ReadCommon();
  spec.embedding_scale = std::sqrt(static_cast<float>(spec.hidden_size));
  // Files without these keys are older than the keys; their models have these values.
  spec.logit_soft_cap = reader.OptionalPositive("final_logit_softcapping").value_or(30.0f);
  const float soft_cap = reader.OptionalPositive("attn_logit_softcapping").value_or(50.0f);
  spec.ropes = {reader.ReadRope()};
  const std::vector<bool> windowed = reader.WindowedLayers(spec.layer_count(), 2);
  const int64_t window = reader.Number("attention.sliding_window", 1, kMaxSize);
  for (int64_t i = 0; i < spec.layer_count(); ++i) {
    LayerSpec& layer = spec.layers[static_cast<size_t>(i)];
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
    layer.tensors.post_attention_norm = prefix + "post_attention_norm.weight";
    layer.tensors.post_ffn_norm = prefix + "post_ffw_norm.weight";
  }
  return spec;
}

}  // namespace riffle::engine
