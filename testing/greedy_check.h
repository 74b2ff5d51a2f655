// Greedy tokens of the engine against those of another implementation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/model.h"

namespace riffle::testing {

struct GreedyCase {
  std::string name;
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;  // by the other implementation
  std::vector<double> gaps;     // between its two best logits, at each of the tokens
};

// If the two best logits are closer than this, rounding may decide between them: activations are
// not float32 everywhere.
constexpr double kCloseLogits = 0.05;

// Fails the test if a token differs although the gap is above kCloseLogits; returns how many tokens
// with smaller gaps were compared, of at most `max_steps` per case. `context`: the engine's.
size_t ExpectSameGreedyTokens(const engine::Model& model, const std::vector<GreedyCase>& cases,
                              size_t max_steps, int64_t context = 0);

// The tokens of all requests, run together.
std::vector<std::vector<int32_t>> RunRequests(const engine::Model& model,
                                              const std::vector<engine::Request>& requests,
                                              uint64_t seed = 0, int64_t context = 0);

}  // namespace riffle::testing
