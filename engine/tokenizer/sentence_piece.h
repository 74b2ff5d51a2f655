// SentencePiece's byte-pair encoding by score, tokenizer.ggml.model "llama". Spaces become U+2581.
// A fragment starts as characters, and the adjacent pair whose union is the token of the highest
// score (the leftmost of equals) is merged until none is left. Characters that are no token become
// one byte token per byte.
//
// Source of the method: SentencePiece's bpe_model.cc, and llama.cpp's SPM tokenizer for what a GGUF
// file adds (add_space_prefix).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/fragment_encoder.h"

namespace riffle::engine {

// What SentencePiece's methods have in common: how tokens write a space, and what their texts stand
// for.
inline constexpr std::string_view kEscapedSpace = "\u2581";
std::string WithEscapedSpaces(std::string_view text);
std::string UnescapedBytes(std::string_view text, TokenType type);
// Notes the byte token in `byte_tokens`, which has -1 for bytes without one; of equal ones the
// first counts. Throws BadModel unless its text is "<0x00>" to "<0xFF>".
void AddByteToken(const GgufFile& file, int32_t token, std::string_view text,
                  std::array<int32_t, 256>& byte_tokens);

class Charsmap;

class SentencePiece final : public FragmentEncoder {
 public:
  // Takes the texts of the file's tokens and their types. Throws BadModel.
  SentencePiece(const GgufFile& file, const std::vector<std::string_view>& texts,
                const std::vector<TokenType>& types);
  ~SentencePiece() override;

  // With a charsmap, Encode normalizes the original text, so it is left as it is here.
  std::string EscapeSpaces(std::string_view text) const override {
    return charsmap_ != nullptr ? std::string(text) : WithEscapedSpaces(text);
  }
  void Encode(std::string_view fragment, std::vector<int32_t>* out) const override;
  std::string TokenBytes(std::string_view text, TokenType type) const override {
    return UnescapedBytes(text, type);
  }
  bool adds_space() const override { return space_prefix_; }
  bool adds_bos() const override { return true; }

 private:
  void EncodeSymbol(std::string_view symbol, std::vector<int32_t>* out) const;

  std::unique_ptr<const Charsmap> charsmap_;  // null: none
  bool removes_spaces_ = false;               // by the charsmap
  TokenOfText normal_;                        // as they stand in the file
  std::vector<float> scores_;
  std::array<int32_t, 256> byte_tokens_;
  int32_t unknown_ = -1;
  bool space_prefix_ = false;
};

}  // namespace riffle::engine
