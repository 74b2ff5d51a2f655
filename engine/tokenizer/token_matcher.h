// Finds tokens in a text: either the user-defined and control tokens, at which a text is cut before
// it is encoded, or all tokens of a vocabulary.
//
// Method: Aho and Corasick, "Efficient string matching" (1975). The text is read once: from its
// end, which gives the tokens that start at each byte, or from its start, which gives those that
// end there. So the time is linear in the text, however many tokens there are and whatever they
// have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace riffle::engine {

class TokenMatcher {
 public:
  struct Match {
    size_t start;
    size_t length;
    int32_t token;
  };

  struct Range {
    size_t start, end;
  };

  enum class Reading : uint8_t { kFromEnd, kFromStart };

  // Find() needs kFromEnd, Read() and ForEachMatchEndingAt() need kFromStart.
  explicit TokenMatcher(Reading reading = Reading::kFromEnd) : reading_(reading), nodes_(1) {}

  // Adds a text to be found. Of several tokens with the same text the first one counts; in plain
  // ranges, the first one that is not a control token. An empty text never matches.
  void Add(std::string_view text, int32_t token, bool control = false);
  // To be called after the last Add and before Find.
  void Finish();

  // The matches from left to right, at each place the longest one; they do not overlap. A control
  // token that touches a `plain` range does not count; these ranges ascend and do not touch.
  std::vector<Match> Find(std::string_view text, std::span<const Range> plain = {}) const;

  static constexpr int32_t kStartState = 0;
  // Reads on: `state` is kStartState or the result for the text before.
  int32_t Read(int32_t state, std::string_view text) const;
  // Calls found(length, token) for every token that ends where `state` has read to, the longest
  // first.
  template <typename Found>
  void ForEachMatchEndingAt(int32_t state, const Found& found) const {
    for (int32_t at = At(state).longest; at >= 0; at = At(At(at).fallback).longest) {
      found(static_cast<size_t>(At(at).length), At(at).token);
    }
  }

 private:
  // A node of the trie stands for a prefix of tokens' texts, in the order of reading.
  struct Node {
    int32_t first_child = -1;
    int32_t sibling = -1;
    int32_t fallback = 0;  // the node of the longest proper suffix of what was read; 0: the root
    // The node of the longest token that ends with what was read: of all tokens, and of those that
    // are not control tokens; -1: none.
    int32_t longest = -1;
    int32_t longest_plain = -1;
    int32_t token = -1;        // -1: none ends here
    int32_t plain_token = -1;  // that is no control token
    int32_t length = 0;
    uint8_t byte = 0;
  };

  int32_t Child(int32_t node, uint8_t byte) const;  // -1: none
  int32_t Step(int32_t node, uint8_t byte) const;
  // The longest token that counts at `start`, where the state is `node` and the plain range that
  // starts next (or has started) begins at `plain_begin`.
  Match LongestAt(size_t start, int32_t node, size_t plain_begin) const;
  Node& At(int32_t node) { return nodes_[static_cast<size_t>(node)]; }
  const Node& At(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }

  Reading reading_;
  std::vector<Node> nodes_;  // the first is the root: nothing read
};

}  // namespace riffle::engine
