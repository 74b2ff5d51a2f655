// Finds tokens in a text: those that it is cut at before it is encoded, user-defined and control
// tokens, or all tokens of a vocabulary.
//
// Method: Aho and Corasick, "Efficient string matching" (1975), over the reversed tokens. The text
// is read once from its end, which gives the longest token that starts at each byte. So the time
// is linear in the text, however many tokens there are and whatever they have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace riffle::engine {

class SpecialTokens {
 public:
  struct Match {
    size_t start;
    size_t length;
    int32_t token;
  };

  struct Range {
    size_t start, end;
  };

  SpecialTokens() : nodes_(1) {}

  // Of equal texts the first counts, and the first that is no control token where control tokens do
  // not; an empty one never matches.
  void Add(std::string_view text, int32_t token, bool control = false);
  // After the last Add, before Find.
  void Finish();

  // From the left, at each place the longest; they do not overlap. A control token does not count
  // where it touches a `plain` range; the ranges rise and are apart.
  std::vector<Match> Find(std::string_view text, std::span<const Range> plain = {}) const;
  // All of them, by falling start, at each place the longest first. Time and memory are linear in
  // the text and the number of matches.
  std::vector<Match> FindAll(std::string_view text) const;

 private:
  // A node stands for the end of some tokens' texts: what has been read from the right.
  struct Node {
    int32_t first_child = -1;
    int32_t sibling = -1;
    int32_t fallback = 0;  // the longest start of what was read that is a node too, read later
    // The node of the longest token that starts where reading is, of any and of those that are no
    // control tokens; -1: none.
    int32_t longest = -1;
    int32_t longest_plain = -1;
    int32_t token = -1;        // -1: none ends here
    int32_t plain_token = -1;  // that is no control token
    int32_t length = 0;
    uint8_t byte = 0;
  };

  int32_t Child(int32_t node, uint8_t byte) const;  // -1: none
  int32_t Step(int32_t node, uint8_t byte) const;
  // The longest token at `start` where reading is at `node` and the next plain range is [begin,
  // ...).
  Match LongestAt(size_t start, int32_t node, size_t plain_begin) const;
  Node& At(int32_t node) { return nodes_[static_cast<size_t>(node)]; }
  const Node& At(int32_t node) const { return nodes_[static_cast<size_t>(node)]; }

  std::vector<Node> nodes_;  // the first is the root: nothing read
};

}  // namespace riffle::engine
