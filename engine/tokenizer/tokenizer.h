// The tokenizer of a GGUF file whose tokenizer.ggml.model is "llama": SentencePiece's byte-pair
// encoding by score. Spaces become U+2581. The text is cut at the user-defined and control tokens
// it contains (the longest first); what lies between starts as characters, and the adjacent pair
// whose union is the token of the highest score (the leftmost of equals) is merged until none is
// left. Characters that are no token become one byte token per byte.
//
// Source of the method: SentencePiece's bpe_model.cc, and llama.cpp's SPM tokenizer for what a GGUF
// file adds (add_bos_token, add_space_prefix).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/gguf/gguf.h"
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

  int64_t vocab() const { return static_cast<int64_t>(tokens_.size()); }

  // The tokens of `text`, after BOS if the file asks for it. Control tokens that the text spells
  // out, such as <start_of_turn>, become those tokens. Throws BadText unless `text` is UTF-8.
  std::vector<int32_t> Encode(std::string_view text) const;

  // The bytes of a token: a part of a character, if it is a byte token; nothing, if it is a control
  // token. Throws std::out_of_range for a number that is no token.
  std::string_view Piece(int32_t token) const;

  // The text of `tokens`; bytes that are not UTF-8 as U+FFFD. Decode(Encode(text)) == text, except
  // that U+2581 comes back as a space and control tokens come back as nothing.
  std::string Decode(const std::vector<int32_t>& tokens) const;

 private:
  enum class Type : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };
  struct Token {
    std::string piece;
    float score;
    Type type;
  };
  // So that a string_view is looked up without a copy.
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  using TokenOfText = std::unordered_map<std::string, int32_t, Hash, std::equal_to<>>;

  void ReadTokens(const GgufFile& file);
  void ReadByteToken(const GgufFile& file, int32_t token, std::string_view text);
  void ReadSettings(const GgufFile& file);
  void EncodeFragment(std::string_view fragment, std::vector<int32_t>* out) const;
  void EncodeSymbol(std::string_view symbol, std::vector<int32_t>* out) const;

  std::vector<Token> tokens_;
  // Normal tokens, as they stand in the file (U+2581 for a space).
  TokenOfText normal_;
  SpecialTokens special_;  // user-defined and control tokens, spaces as U+2581
  std::array<int32_t, 256> byte_tokens_;
  int32_t unknown_ = -1;
  int32_t bos_ = -1;  // -1: none is put before a text
  int32_t eos_ = -1;  // -1: none is put after a text
  bool space_prefix_ = false;
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
