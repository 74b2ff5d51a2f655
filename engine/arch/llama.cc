// Llama 2 and 3, and models with the same layers: SmolLM2, Mistral. Files hold the rows of Q and K
// so that RoPE rotates adjacent elements of a head; Llama 3's factors of the angles are in the
// tensor rope_freqs.weight, LongRoPE's in rope_factors_long.weight and rope_factors_short.weight.
//
// Source: Touvron et al., "Llama 2" (2023); Grattafiori et al., "The Llama 3 Herd of Models"
// (2024).
#include "engine/arch/architectures.h"

namespace riffle::engine {

ModelSpec ReadLlama(const SpecReader& reader) {
  ModelSpec spec = reader.ReadCommon();
  spec.rope_pairs = RopePairs::kAdjacent;
  spec.ropes = {reader.ReadRope()};
  if (reader.Has("attention.sliding_window")) {  // Mistral 7B's first version
    const int64_t window = reader.Number("attention.sliding_window", 0, kMaxSize);
    for (LayerSpec& layer : spec.layers) {
      if (window > 0) {  // 0: none
        layer.window = window;
      }
    }
  }
  return spec;
}

}  // namespace riffle::engine
