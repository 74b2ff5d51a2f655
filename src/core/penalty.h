// What repetition, frequency and presence penalties make of one logit: for rows that are sampled,
// and for the engine, which has only the best logits of a row.
#pragma once

#include <cstdint>

namespace riffle::core {

struct PenaltyFactors {
  float repetition = 1;  // 1: off; finite, > 0
  float presence = 0;    // 0: off; finite
  float frequency = 0;   // 0: off; finite

  bool any() const { return repetition != 1 || presence != 0 || frequency != 0; }
};

// Each step in f32, in this order:
//   repetition r  x / r if x >= 0, else x * r: for every token of the prompt and the output
//   frequency f   x - f * how often the token occurs in the output
//   presence p    x - p if it occurs in the output
//
// Pre: the token occurs in the prompt, or in the output.
//
// Source: Keskar et al., "CTRL" (2019), section 4.1, with negative logits treated as in
// Transformers' RepetitionPenaltyLogitsProcessor; frequency and presence as in OpenAI's API, in the
// order that vLLM uses.
inline float Penalized(float logit, const PenaltyFactors& penalties, int32_t output_count) {
  logit = logit < 0 ? logit * penalties.repetition : logit / penalties.repetition;
  logit -= penalties.frequency * static_cast<float>(output_count);
  return logit - (output_count > 0 ? penalties.presence : 0);
}

}  // namespace riffle::core
