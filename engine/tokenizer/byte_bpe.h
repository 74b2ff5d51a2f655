// Byte-level byte-pair encoding by rank, tokenizer.ggml.model "gpt2". A pre-tokenizer cuts the text
// into pre-tokens. A pre-token starts as single bytes, and the adjacent pair of the lowest rank in
// the file's list of merges (the leftmost of equals) is merged until none is left. Files write a
// byte as a printable character; bytes that have no token in the file (SmolLM2 lacks some control
// characters) are left out, as the library tokenizers does.
//
// Source of the method: Radford et al., "Language Models are Unsupervised Multitask Learners"
// (2019), and its encoder.py.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/fragment_encoder.h"
#include "engine/tokenizer/pre_tokenizer.h"

namespace riffle::engine {

class ByteBpe final : public FragmentEncoder {
 public:
  // Takes the texts of the file's tokens and their types. Throws BadModel.
  ByteBpe(const GgufFile& file, const std::vector<std::string_view>& texts,
          const std::vector<TokenType>& types);

  std::string EscapeSpaces(std::string_view text) const override { return std::string(text); }
  void Encode(std::string_view fragment, std::vector<int32_t>* out) const override;
  std::string TokenBytes(std::string_view text, TokenType type) const override;
  bool adds_bos() const override { return pre_tokenizer_ == PreTokenizer::kLlama3; }

 private:
  struct Merge {
    int32_t rank;
    int32_t token;
  };

  void ReadMerges(const GgufFile& file, const TokenOfText& written);
  void EncodePreToken(std::string_view pre_token, std::vector<int32_t>* out) const;

  PreTokenizer pre_tokenizer_ = PreTokenizer::kGpt2;
  std::array<int32_t, 256> byte_tokens_;  // the token of each byte; -1: none
  TokenOfText whole_;  // tokens by their bytes, where a pre-token may be one token
  std::unordered_map<uint64_t, Merge> merge_of_;  // of two tokens, the left one in the upper half
};

}  // namespace riffle::engine
