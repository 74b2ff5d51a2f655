// The angles of rotary position embeddings.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/arch/model_spec.h"

namespace riffle::engine {

// Cosines and sines of a RopeSpec's angles, times its magnitude, of pairs i < head_dim / 2, for all
// positions so far.
class RopeAngles {
 public:
  // `factors` are the [head_dim / 2] values of the tensor spec.factors, or empty.
  RopeAngles(int64_t head_dim, const RopeSpec& spec, std::span<const float> factors);

  // Adds positions up to `last`. A position's values depend only on the position.
  void Grow(int64_t last);
  // [head_dim]: cosines, then sines. Pre: Grow(position or later) has been called.
  const float* At(int64_t position) const { return values_.data() + position * head_dim_; }

 private:
  struct Rotation {
    double cosine;
    double sine;
  };
  Rotation Of(int64_t position, int64_t i) const;

  int64_t head_dim_;
  double magnitude_;
  std::vector<double> frequency_;  // [head_dim / 2]
  std::vector<Rotation> near_;     // [64][head_dim / 2]: rotations of positions 0 to 63
  std::vector<Rotation> far_;      // [head_dim / 2]: rotation of the last multiple of 64
  std::vector<float> values_;      // [positions][head_dim]
};

}  // namespace riffle::engine
