#include "engine/penalties.h"

#include <algorithm>

namespace riffle::engine {

TokenCounts::TokenCounts(std::span<const int32_t> prompt) {
  std::vector<int32_t> tokens(prompt.begin(), prompt.end());
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  counts_.reserve(tokens.size());
  for (const int32_t token : tokens) {
    counts_.push_back({token, 0});
  }
}

void TokenCounts::Reserve() {
  if (counts_.size() == counts_.capacity()) {
    counts_.reserve(2 * counts_.size() + 1);
  }
}

void TokenCounts::Add(int32_t token) noexcept {
  auto at = std::lower_bound(
      counts_.begin(), counts_.end(), token,
      [](const TokenCount& count, int32_t wanted) { return count.token < wanted; });
  if (at == counts_.end() || at->token != token) {
    at = counts_.insert(at, {token, 0});  // cannot throw: Reserve made room
  }
  ++at->in_answer;
}

void Penalize(const Penalties& penalties, std::span<const TokenCount> counts, float* logits) {
  for (const TokenCount& count : counts) {
    float& logit = logits[count.token];
    logit = logit < 0 ? logit * penalties.repetition : logit / penalties.repetition;
    if (count.in_answer > 0) {
      logit -= penalties.frequency * static_cast<float>(count.in_answer);
      logit -= penalties.presence;
    }
  }
}

}  // namespace riffle::engine
