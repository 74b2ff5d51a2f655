// SentencePiece's unigram model, tokenizer.ggml.model "t5". Spaces become U+2581. Of all ways to
// write a fragment as tokens, the one of the greatest sum of scores is taken; of equal ones, at
// every place the one whose last token is longest. A character that is no token by itself may be an
// unknown one, whose score is 10 below the lowest score; consecutive unknown characters become one
// byte token per byte if the vocabulary has all byte tokens, else one unknown token.
//
// Source of the method: Kudo, "Subword regularization" (2018), and SentencePiece's unigram_model.cc
// for unknown characters.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/charsmap.h"
#include "engine/tokenizer/fragment_encoder.h"
#include "engine/tokenizer/sentence_piece.h"
#include "engine/tokenizer/token_matcher.h"

namespace riffle::engine {

class Unigram final : public FragmentEncoder {
 public:
  // Takes the texts of the file's tokens and their types. Throws BadModel.
  Unigram(const GgufFile& file, const std::vector<std::string_view>& texts,
          const std::vector<TokenType>& types);

  // With a charsmap, Encode normalizes the original text, so it is left as it is here.
  std::string EscapeSpaces(std::string_view text) const override {
    return charsmap_ ? std::string(text) : WithEscapedSpaces(text);
  }
  void Encode(std::string_view fragment, std::vector<int32_t>* out) const override;
  std::string TokenBytes(std::string_view text, TokenType type) const override {
    return UnescapedBytes(text, type);
  }
  bool adds_space() const override { return space_prefix_; }
  bool adds_bos() const override { return false; }
  bool adds_eos() const override { return true; }

 private:
  struct Step {  // the best way to a place: its last token, and where that begins
    double score = 0;
    size_t start = 0;
    int32_t token = kNone;
  };
  static constexpr int32_t kNone = -2;     // no way leads here
  static constexpr int32_t kUnknown = -1;  // an unknown character

  std::string Normalize(std::string_view fragment) const;
  std::vector<Step> BestSteps(std::string_view text) const;
  void AddUnknown(std::string_view text, std::vector<int32_t>* out) const;

  std::optional<Charsmap> charsmap_;
  TokenMatcher tokens_{TokenMatcher::Reading::kFromStart};  // normal ones
  std::vector<float> scores_;
  double unknown_score_ = 0;
  int32_t unknown_ = 0;
  std::array<int32_t, 256> byte_tokens_;
  bool has_bytes_ = false;
  bool space_prefix_ = true;
  bool removes_spaces_ = false;
};

}  // namespace riffle::engine
