#include "engine/penalties.h"

#include <algorithm>
#include <bit>

#include "core/order.h"

namespace riffle::engine {
namespace {

// The first count whose token is `token` or a higher one.
template <typename Counts>
auto FindToken(Counts& counts, int32_t token) {
  return std::lower_bound(
      counts.begin(), counts.end(), token,
      [](const TokenCount& count, int32_t wanted) { return count.token < wanted; });
}

}  // namespace

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
  auto at = FindToken(counts_, token);
  if (at == counts_.end() || at->token != token) {
    at = counts_.insert(at, {token, 0});  // cannot throw: Reserve made room
  }
  ++at->in_answer;
}

void Penalize(const Penalties& penalties, std::span<const TokenCount> counts, float* logits) {
  for (const TokenCount& count : counts) {
    float& logit = logits[count.token];
    logit = core::Penalized(logit, penalties, count.in_answer);
  }
}

void PenalizeAndSort(const Penalties& penalties, std::span<const TokenCount> counts,
                     std::span<float> logits, std::span<int32_t> tokens) {
  struct Ranked {
    int32_t key;  // of the logit in the library's order
    int32_t token;
    float logit;
  };
  std::vector<Ranked> ranked;
  ranked.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto count = FindToken(counts, tokens[i]);
    if (count != counts.end() && count->token == tokens[i]) {
      logits[i] = core::Penalized(logits[i], penalties, count->in_answer);
    }
    const int32_t key = core::Key(std::bit_cast<int32_t>(logits[i]), core::kF32Format);
    ranked.push_back({key, tokens[i], logits[i]});
  }
  std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
    return a.key != b.key ? a.key > b.key : a.token < b.token;
  });
  for (size_t i = 0; i < tokens.size(); ++i) {
    logits[i] = ranked[i].logit;
    tokens[i] = ranked[i].token;
  }
}

}  // namespace riffle::engine
