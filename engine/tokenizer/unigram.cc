#include "engine/tokenizer/unigram.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "engine/tokenizer/token_keys.h"
#include "engine/tokenizer/utf8.h"

namespace riffle::engine {
namespace {

constexpr double kUnknownPenalty = 10;

}  // namespace

Unigram::Unigram(const GgufFile& file, const std::vector<std::string_view>& texts,
                 const std::vector<TokenType>& types)
    : charsmap_(Charsmap::Of(file)), scores_(file.Floats("tokenizer.ggml.scores")) {
  if (scores_.size() != texts.size()) {
    file.Fail(
        fmt::format("its vocabulary has {} tokens, but {} scores", texts.size(), scores_.size()));
  }
  byte_tokens_.fill(-1);
  double least = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto token = static_cast<int32_t>(i);
    if (!std::isfinite(scores_[i])) {
      file.Fail(fmt::format("the score of token {} is not a finite number", i));
    }
    if (types[i] == TokenType::kByte) {
      AddByteToken(file, token, texts[i], byte_tokens_);
    } else if (types[i] == TokenType::kNormal) {
      least = std::min(least, static_cast<double>(scores_[i]));
      tokens_.Add(texts[i], token);
    }
  }
  tokens_.Finish();
  unknown_score_ = least - kUnknownPenalty;
  has_bytes_ = std::find(byte_tokens_.begin(), byte_tokens_.end(), -1) == byte_tokens_.end();
  space_prefix_ = file.BoolOr("tokenizer.ggml.add_space_prefix", true);
  removes_spaces_ = file.BoolOr("tokenizer.ggml.remove_extra_whitespaces", false);
  unknown_ = ReadToken(file, "unknown_token_id", texts.size());
}

// Adds a space before the text, and removes spaces at its ends and behind other spaces, where the
// file asks for that.
std::string Unigram::Normalize(std::string_view fragment) const {
  if (charsmap_) {
    return charsmap_->Normalize(fragment, space_prefix_, removes_spaces_);
  }
  std::string text = space_prefix_ ? std::string(kEscapedSpace) : "";
  if (!removes_spaces_) {
    return text += fragment;
  }
  bool space = true;  // the last character was one, or there was none
  for (size_t at = 0; at < fragment.size();) {
    const size_t length = FirstCharacter(fragment.substr(at)).length;
    const std::string_view character = fragment.substr(at, length);
    if (character != kEscapedSpace || !space) {
      text += character;
    }
    space = character == kEscapedSpace;
    at += length;
  }
  const size_t prefix = space_prefix_ ? kEscapedSpace.size() : 0;
  if (space && text.size() > prefix) {
    text.resize(text.size() - kEscapedSpace.size());
  }
  return text.size() > prefix ? text : "";
}

// The best step to each place where a character ends, by a token that ends there; [0] is the start.
std::vector<Unigram::Step> Unigram::BestSteps(std::string_view text) const {
  std::vector<Step> steps(text.size() + 1);
  const auto improve = [&](size_t start, size_t end, double score, int32_t token) {
    Step& step = steps[end];
    const double sum = steps[start].score + score;
    if (step.token == kNone || sum > step.score) {
      step = {sum, start, token};
    }
  };
  int32_t read = TokenMatcher::kStartState;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at + FirstCharacter(text.substr(at)).length;
    read = tokens_.Read(read, text.substr(at, end - at));
    bool single = false;  // whether the character is a token
    tokens_.ForEachMatchEndingAt(read, [&](size_t length, int32_t token) {
      const size_t start = end - length;
      if (start > 0 && steps[start].token == kNone) {
        return;  // it begins within a character
      }
      improve(start, end, scores_[static_cast<size_t>(token)], token);
      single = single || start == at;
    });
    if (!single) {
      improve(at, end, unknown_score_, kUnknown);
    }
    at = end;
  }
  return steps;
}

void Unigram::AddUnknown(std::string_view text, std::vector<int32_t>* out) const {
  if (!has_bytes_) {
    out->push_back(unknown_);
    return;
  }
  for (const char c : text) {
    out->push_back(byte_tokens_[static_cast<uint8_t>(c)]);
  }
}

void Unigram::Encode(std::string_view fragment, std::vector<int32_t>* out) const {
  const std::string text = Normalize(fragment);
  const std::vector<Step> steps = BestSteps(text);
  std::vector<size_t> ends;
  for (size_t end = text.size(); end > 0; end = steps[end].start) {
    ends.push_back(end);
  }
  for (size_t i = ends.size(); i > 0; --i) {
    const Step& step = steps[ends[i - 1]];
    if (step.token != kUnknown) {
      out->push_back(step.token);
      continue;
    }
    while (i > 1 && steps[ends[i - 2]].token == kUnknown) {
      --i;
    }
    AddUnknown(std::string_view(text).substr(step.start, ends[i - 1] - step.start), out);
  }
}

}  // namespace riffle::engine
