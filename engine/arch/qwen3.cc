// Qwen 3 (dense): Llama's layers with norms of every head of queries and keys.
//
// Source: Yang et al., "Qwen3 Technical Report" (2025).
#include "engine/arch/architectures.h"

namespace riffle::engine {

ModelSpec ReadQwen3(const SpecReader& reader) {
  ModelSpec spec = reader.ReadCommon();
  spec.ropes = {reader.ReadRope()};
  for (int64_t i = 0; i < spec.layer_count(); ++i) {
    LayerTensors& tensors = spec.layers[static_cast<size_t>(i)].tensors;
    const std::string prefix = "blk." + std::to_string(i) + ".";
    tensors.q_norm = prefix + "attn_q_norm.weight";
    tensors.k_norm = prefix + "attn_k_norm.weight";
  }
  return spec;
}

}  // namespace riffle::engine
