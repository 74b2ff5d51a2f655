// The tokenizer of a GGUF file: SentencePiece (tokenizer.ggml.model "llama") or byte-level BPE
// ("gpt2"). A text is cut at the user-defined and control tokens that it contains (the longest
// first); what lies between is encoded by the method, in a file of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/fragment_encoder.h"
#include "engine/tokenizer/special_tokens.h"

namespace riffle::engine {

// A text that is not UTF-8. what() says at which byte.
class BadText : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Tokenizer {
 public:
  // Copies what it needs of `file`. Throws BadModel if the file's tokenizer is of another kind or
  // contradicts itself.
  explicit Tokenizer(const GgufFile& file);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  int64_t vocab() const { return static_cast<int64_t>(pieces_.size()); }

  // The tokens of `text`, after BOS if the file asks for it. Control tokens that the text spells
  // out, such as <start_of_turn>, become those tokens. Throws BadText unless `text` is UTF-8.
  std::vector<int32_t> Encode(std::string_view text) const;

  // The bytes of a token: a part of a character, if it is a byte token; nothing, if it is a control
  // token. Throws std::out_of_range for a number that is no token.
  std::string_view Piece(int32_t token) const;

  // The text of `tokens`; bytes that are not UTF-8 as U+FFFD. Decode(Encode(text)) == text, except
  // that control tokens come back as nothing, SentencePiece's U+2581 as a space, and what a
  // pre-tokenizer composes (Qwen 2's does) as composed.
  std::string Decode(const std::vector<int32_t>& tokens) const;

 private:
  static std::vector<TokenType> ReadTypes(const GgufFile& file, size_t tokens);
  void ReadSettings(const GgufFile& file);

  std::unique_ptr<FragmentEncoder> encoder_;
  std::vector<std::string> pieces_;  // of each token
  SpecialTokens special_;            // user-defined and control tokens
  int32_t bos_ = -1;                 // -1: none is put before a text
  int32_t eos_ = -1;                 // -1: none is put after a text
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
