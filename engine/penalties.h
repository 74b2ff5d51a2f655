// Penalties: lower (or raise) the logits of tokens that a request already contains, before its next
// token is chosen.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/penalty.h"

namespace riffle::engine {

// core::Penalized has the formulas; a request's answer is what they call the output. The library's
// SampleOptions have the same penalties for whole rows of logits; here they also change lists of
// the k best, which is all that the fused LM head gives. Presence and frequency are -2 to 2.
struct Penalties : core::PenaltyFactors {
  // Whether no logit is raised. Then, if n tokens are counted, the k best after the penalties are
  // among the k + n best before them, at least k of which are not counted and keep their logits.
  bool only_lower() const { return repetition >= 1 && presence >= 0 && frequency >= 0; }
};

struct TokenCount {
  int32_t token;
  int32_t in_answer;  // how often it was generated; 0: it is in the prompt only
};

// The different tokens of a request.
class TokenCounts {
 public:
  TokenCounts() = default;
  explicit TokenCounts(std::span<const int32_t> prompt);

  // Makes room for the next Add(), which then does not throw.
  void Reserve();
  // Counts a token of the answer. Pre: Reserve() was called since the last Add().
  void Add(int32_t token) noexcept;

  std::span<const TokenCount> counts() const { return counts_; }  // in ascending order of token

 private:
  std::vector<TokenCount> counts_;
};

// Changes the logits of the tokens counted; `logits` has one for each token of the vocabulary.
void Penalize(const Penalties& penalties, std::span<const TokenCount> counts, float* logits);
// The same for a list, where logits[i] is that of tokens[i]. Sorts both in the library's order
// again: best first, of equal logits the lower token.
void PenalizeAndSort(const Penalties& penalties, std::span<const TokenCount> counts,
                     std::span<float> logits, std::span<int32_t> tokens);

}  // namespace riffle::engine
