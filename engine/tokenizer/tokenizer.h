// The tokenizer of a GGUF file: SentencePiece's BPE (tokenizer.ggml.model "llama") or unigram model
// ("t5"), or byte-level BPE ("gpt2"). A text is cut at the user-defined and control tokens that it
// contains (the longest first); a FragmentEncoder of the method encodes what lies between.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/fragment_encoder.h"
#include "engine/tokenizer/token_matcher.h"

namespace riffle::engine {

// A text that is not UTF-8. what() says at which byte.
class BadText : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A part of a text. Control tokens that a plain part spells out, even in part, stay text there: so
// what a user wrote cannot end a turn of a conversation.
struct TextPart {
  std::string text;
  bool plain = false;
};

class Tokenizer {
 public:
  // Copies what it needs of `file`. Throws BadModel if the file's tokenizer is of another kind or
  // contradicts itself.
  explicit Tokenizer(const GgufFile& file);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  int64_t vocab() const { return static_cast<int64_t>(token_bytes_.size()); }

  // The tokens of `text`, after BOS if the file asks for it. Control tokens that the text spells
  // out, such as <start_of_turn>, become those tokens. Throws BadText unless `text` is UTF-8.
  std::vector<int32_t> Encode(std::string_view text) const;
  // The same for the parts of one text. Apart from control tokens, its tokens do not depend on
  // where the parts begin.
  std::vector<int32_t> Encode(std::span<const TextPart> parts) const;

  // The control or user-defined token of that text in the file, if there is one.
  std::optional<int32_t> SpecialToken(std::string_view text) const;
  bool adds_bos() const { return bos_ >= 0; }

  // The bytes of a token: a part of a character, if it is a byte token; nothing, if it is a control
  // token. Throws std::out_of_range for a number that is no token.
  std::string_view TokenBytes(int32_t token) const;

  // The text of `tokens`; bytes that are not UTF-8 become U+FFFD. Decode(Encode(text)) == text,
  // except that control tokens and unknown characters come back as nothing, SentencePiece's U+2581
  // as a space, and what a pre-tokenizer composes (Qwen 2's does) or a charsmap normalizes as
  // composed or normalized; and if the file asks for a space before a text, special tokens are
  // followed by a space, and one space at the beginning is taken for that one.
  std::string Decode(const std::vector<int32_t>& tokens) const;

 private:
  static std::vector<TokenType> ReadTypes(const GgufFile& file, size_t tokens);
  void ReadSettings(const GgufFile& file);

  std::unique_ptr<FragmentEncoder> encoder_;
  std::vector<std::string> token_bytes_;  // of each token
  TokenMatcher special_;                  // user-defined and control tokens
  int32_t bos_ = -1;                      // -1: none is put before a text
  int32_t eos_ = -1;                      // -1: none is put after a text
};

// Text from tokens as they come, always whole characters.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  // What `token` completes: whole characters of valid UTF-8, possibly none.
  std::string Push(int32_t token);
  // The rest, at the end: an incomplete character becomes U+FFFD.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;  // the start of a character
};

}  // namespace riffle::engine
