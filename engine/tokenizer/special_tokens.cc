#include "engine/tokenizer/special_tokens.h"

#include <algorithm>

namespace riffle::engine {

int32_t SpecialTokens::Child(int32_t node, uint8_t byte) const {
  int32_t child = At(node).first_child;
  while (child >= 0 && At(child).byte != byte) {
    child = At(child).sibling;
  }
  return child;
}

void SpecialTokens::Add(std::string_view text, int32_t token) {
  int32_t node = 0;
  for (size_t i = text.size(); i > 0; --i) {
    const auto byte = static_cast<uint8_t>(text[i - 1]);
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      Node fresh;
      fresh.byte = byte;
      fresh.length = At(node).length + 1;
      fresh.sibling = At(node).first_child;
      nodes_.push_back(fresh);
      At(node).first_child = child;
    }
    node = child;
  }
  if (node != 0 && At(node).token < 0) {
    At(node).token = token;
  }
}

// Breadth first: a node's fallback is shorter, so it is complete already.
void SpecialTokens::Finish() {
  std::vector<int32_t> order;
  order.reserve(nodes_.size());
  order.push_back(0);
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t node = order[i];
    for (int32_t child = At(node).first_child; child >= 0; child = At(child).sibling) {
      At(child).fallback = node == 0 ? 0 : Step(At(node).fallback, At(child).byte);
      At(child).longest = At(child).token >= 0 ? child : At(At(child).fallback).longest;
      order.push_back(child);
    }
  }
}

int32_t SpecialTokens::Step(int32_t node, uint8_t byte) const {
  for (;; node = At(node).fallback) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
  }
}

std::vector<SpecialTokens::Match> SpecialTokens::Find(
    std::string_view text, const std::function<bool(const Match&)>& allowed) const {
  std::vector<Match> matches;
  if (nodes_.size() == 1) return matches;
  std::vector<int32_t> longest(text.size());  // the node of the longest token from each byte on
  int32_t node = 0;
  for (size_t i = text.size(); i > 0; --i) {
    node = Step(node, static_cast<uint8_t>(text[i - 1]));
    longest[i - 1] = At(node).longest;
  }
  for (size_t at = 0; at < text.size();) {
    Match match = {at, 0, -1};
    for (int32_t found = longest[at]; found >= 0 && match.length == 0;) {
      const Match candidate = {at, static_cast<size_t>(At(found).length), At(found).token};
      if (allowed(candidate)) {
        match = candidate;
      }
      found = At(At(found).fallback).longest;  // the next shorter one
    }
    if (match.length > 0) {
      matches.push_back(match);
    }
    at += std::max<size_t>(match.length, 1);
  }
  return matches;
}

std::vector<SpecialTokens::Match> SpecialTokens::FindAll(std::string_view text) const {
  std::vector<Match> matches;
  int32_t node = 0;
  for (size_t i = text.size(); i > 0; --i) {
    node = Step(node, static_cast<uint8_t>(text[i - 1]));
    int32_t found = At(node).longest;
    while (found >= 0) {
      matches.push_back({i - 1, static_cast<size_t>(At(found).length), At(found).token});
      found = At(At(found).fallback).longest;
    }
  }
  return matches;
}

}  // namespace riffle::engine
