// The table by which SentencePiece normalizes texts, tokenizer.ggml.precompiled_charsmap: sequences
// of characters, and what is written for each of them, such as "fi" for a ligature or a space for a
// wide one. From the left, at every place the longest sequence of the table is replaced.
//
// The table is a trie in a double array: unit u is entered by its byte from the state u ^ byte, and
// leads to the state u ^ offset, where the number of the text is, if a sequence ends there.
//
// Source of the format: SentencePiece's normalizer.cc, and Darts-clone for the units.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"

namespace riffle::engine {

class Charsmap {
 public:
  // The file's charsmap; nothing if it has none. Throws BadModel unless every sequence that can be
  // found is at most 64 bytes long and leads to valid UTF-8 of at most 256 bytes, so that Normalize
  // takes time and memory linear in the text. This call takes time linear in the table.
  static std::optional<Charsmap> Of(const GgufFile& file);

  // `text` as SentencePiece's unigram and BPE models read it: normalized, spaces as U+2581.
  // `removes_spaces`: drops spaces at both ends and after another space; `space_prefix`: then adds
  // one in front. A rest of a character that a sequence cut becomes U+FFFD. Pre: `text` is UTF-8.
  std::string Normalize(std::string_view text, bool space_prefix, bool removes_spaces) const;

 private:
  // What is written for the first `length` bytes of a text.
  struct Piece {
    std::string_view text;
    size_t length;
  };
  class TrieValidator;

  Charsmap(std::vector<uint32_t> units, std::string texts)
      : units_(std::move(units)), texts_(std::move(texts)) {}
  Piece First(std::string_view text) const;

  std::vector<uint32_t> units_;
  std::string texts_;  // each ends with a zero byte
};

}  // namespace riffle::engine
