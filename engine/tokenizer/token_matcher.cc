#include "engine/tokenizer/token_matcher.h"

#include <algorithm>

namespace riffle::engine {

int32_t TokenMatcher::Child(int32_t node, uint8_t byte) const {
  int32_t child = At(node).first_child;
  while (child >= 0 && At(child).byte != byte) {
    child = At(child).sibling;
  }
  return child;
}

void TokenMatcher::Add(std::string_view text, int32_t token, bool control) {
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t place = reading_ == Reading::kFromEnd ? text.size() - 1 - i : i;
    const auto byte = static_cast<uint8_t>(text[place]);
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
  if (node == 0) return;
  if (At(node).token < 0) At(node).token = token;
  if (At(node).plain_token < 0 && !control) At(node).plain_token = token;
}

// Breadth first: a node's fallback is shorter, so it is complete already.
void TokenMatcher::Finish() {
  std::vector<int32_t> order;
  order.reserve(nodes_.size());
  order.push_back(0);
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t node = order[i];
    for (int32_t child = At(node).first_child; child >= 0; child = At(child).sibling) {
      At(child).fallback = node == 0 ? 0 : Step(At(node).fallback, At(child).byte);
      const Node& shorter = At(At(child).fallback);
      At(child).longest = At(child).token >= 0 ? child : shorter.longest;
      At(child).longest_plain = At(child).plain_token >= 0 ? child : shorter.longest_plain;
      order.push_back(child);
    }
  }
}

int32_t TokenMatcher::Step(int32_t node, uint8_t byte) const {
  for (;; node = At(node).fallback) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
  }
}

// Only tokens that start before the plain range and reach into it are looked at one by one.
TokenMatcher::Match TokenMatcher::LongestAt(size_t start, int32_t node, size_t plain_begin) const {
  const auto match = [&](int32_t found, int32_t token) {
    return Match{start, static_cast<size_t>(At(found).length), token};
  };
  if (start < plain_begin) {
    for (int32_t found = At(node).longest; found >= 0; found = At(At(found).fallback).longest) {
      const bool reaches = start + static_cast<size_t>(At(found).length) > plain_begin;
      const int32_t token = reaches ? At(found).plain_token : At(found).token;
      if (token >= 0) return match(found, token);
    }
  } else if (const int32_t found = At(node).longest_plain; found >= 0) {
    return match(found, At(found).plain_token);
  }
  return {start, 0, -1};
}

std::vector<TokenMatcher::Match> TokenMatcher::Find(std::string_view text,
                                                    std::span<const Range> plain) const {
  std::vector<Match> matches;
  if (nodes_.size() == 1) return matches;
  std::vector<int32_t> nodes(text.size());  // the state after reading each byte
  int32_t node = 0;
  for (size_t i = text.size(); i > 0; --i) {
    node = Step(node, static_cast<uint8_t>(text[i - 1]));
    nodes[i - 1] = node;
  }
  for (size_t at = 0; at < text.size();) {
    while (!plain.empty() && plain.front().end <= at) plain = plain.subspan(1);
    const Match match = LongestAt(at, nodes[at], plain.empty() ? text.size() : plain.front().start);
    if (match.length > 0) {
      matches.push_back(match);
    }
    at += std::max<size_t>(match.length, 1);
  }
  return matches;
}

int32_t TokenMatcher::Read(int32_t state, std::string_view text) const {
  for (const char c : text) {
    state = Step(state, static_cast<uint8_t>(c));
  }
  return state;
}

}  // namespace riffle::engine
