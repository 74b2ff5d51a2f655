// Qwen 2 and 2.5: Llama's layers with biases of Q, K and V, which the file has.
//
// Source: Yang et al., "Qwen2 Technical Report" (2024).
#include "engine/arch/architectures.h"

namespace riffle::engine {

ModelSpec ReadQwen2(const SpecReader& reader) {
  ModelSpec spec = reader.ReadCommon();
  spec.ropes = {reader.ReadRope()};
  return spec;
}

}  // namespace riffle::engine
