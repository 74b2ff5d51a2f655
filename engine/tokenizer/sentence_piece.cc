#include "engine/tokenizer/sentence_piece.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <queue>
#include <utility>

#include "engine/tokenizer/charsmap.h"
#include "engine/tokenizer/token_keys.h"
#include "engine/tokenizer/utf8.h"

namespace riffle::engine {
namespace {

std::string Replace(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const size_t found = std::min(text.find(from, at), text.size());
    result += text.substr(at, found - at);
    if (found < text.size()) result += to;
    at = found + from.size();
  }
  return result;
}

// The value of "<0x0A>", 0 to 255; -1 for a text of another form.
int ByteOf(std::string_view text) {
  const auto digit = [](char c) { return std::string_view("0123456789ABCDEF").find(c); };
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>' || digit(text[3]) > 15 ||
      digit(text[4]) > 15) {
    return -1;
  }
  return static_cast<int>(digit(text[3]) * 16 + digit(text[4]));
}

// A part of the fragment that is to become a token, in a list by position.
struct Symbol {
  std::string_view text;  // empty: merged into the one before
  int32_t previous;
  int32_t next;  // -1: none
};

struct Merge {
  float score;
  int32_t left;
  int32_t right;
  size_t length;  // of both when this was found: a merge of one of them changes it

  // std::priority_queue puts the greatest on top.
  bool operator<(const Merge& other) const {
    return score != other.score ? score < other.score : left > other.left;
  }
};

}  // namespace

SentencePiece::SentencePiece(const GgufFile& file, const std::vector<std::string_view>& texts,
                             const std::vector<TokenType>& types)
    : scores_(file.Floats("tokenizer.ggml.scores")) {
  if (scores_.size() != texts.size()) {
    file.Fail(
        fmt::format("its vocabulary has {} tokens, but {} scores", texts.size(), scores_.size()));
  }
  if (std::optional<Charsmap> charsmap = Charsmap::Of(file)) {
    charsmap_ = std::make_unique<Charsmap>(std::move(*charsmap));
    removes_spaces_ = file.BoolOr("tokenizer.ggml.remove_extra_whitespaces", false);
  }
  byte_tokens_.fill(-1);
  normal_.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    if (std::isnan(scores_[i])) file.Fail(fmt::format("the score of token {} is not a number", i));
    const auto token = static_cast<int32_t>(i);
    if (types[i] == TokenType::kByte) {
      AddByteToken(file, token, texts[i], byte_tokens_);
    } else if (types[i] == TokenType::kNormal) {
      normal_.emplace(texts[i], token);
    }
  }
  // Without the key llama.cpp adds a space.
  space_prefix_ = file.BoolOr("tokenizer.ggml.add_space_prefix", true);
  const char* unknown = "unknown_token_id";
  if (file.Has(std::string("tokenizer.ggml.") + unknown)) {
    unknown_ = ReadToken(file, unknown, texts.size());
  }
  const bool all_bytes =
      std::find(byte_tokens_.begin(), byte_tokens_.end(), -1) == byte_tokens_.end();
  if (unknown_ < 0 && !all_bytes) {
    file.Fail("its vocabulary has neither a token for every byte nor one for unknown characters");
  }
}

SentencePiece::~SentencePiece() = default;

void AddByteToken(const GgufFile& file, int32_t token, std::string_view text,
                  std::array<int32_t, 256>& byte_tokens) {
  const int byte = ByteOf(text);
  if (byte < 0) {
    file.Fail(
        fmt::format("token {} is a byte, but its text is \"{}\", not \"<0x00>\" to \"<0xFF>\"",
                    token, Printable(text)));
  }
  int32_t& first = byte_tokens[static_cast<size_t>(byte)];
  if (first < 0) first = token;
}

std::string WithEscapedSpaces(std::string_view text) { return Replace(text, " ", kEscapedSpace); }

std::string UnescapedBytes(std::string_view text, TokenType type) {
  if (type == TokenType::kByte) return std::string(1, static_cast<char>(ByteOf(text)));
  return Replace(text, kEscapedSpace, " ");
}

void SentencePiece::Encode(std::string_view fragment, std::vector<int32_t>* out) const {
  const std::string text =
      charsmap_ != nullptr
          ? charsmap_->Normalize(fragment, space_prefix_, removes_spaces_)
          : std::string(space_prefix_ ? kEscapedSpace : "") + std::string(fragment);
  std::vector<Symbol> symbols;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t length = FirstCharacter(rest).length;
    const auto i = static_cast<int32_t>(symbols.size());
    symbols.push_back({rest.substr(0, length), i - 1, i + 1});
    rest.remove_prefix(length);
  }
  if (symbols.empty()) return;  // nothing is left of the fragment
  symbols.back().next = -1;

  std::priority_queue<Merge> merges;
  const auto try_merge = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const std::string_view a = symbols[static_cast<size_t>(left)].text;
    const size_t length = a.size() + symbols[static_cast<size_t>(right)].text.size();
    const auto found = normal_.find(std::string_view(a.data(), length));  // they are adjacent
    if (found == normal_.end()) return;
    merges.push({scores_[static_cast<size_t>(found->second)], left, right, length});
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) try_merge(i, i + 1);
  while (!merges.empty()) {
    const Merge merge = merges.top();
    merges.pop();
    Symbol& left = symbols[static_cast<size_t>(merge.left)];
    Symbol& right = symbols[static_cast<size_t>(merge.right)];
    if (left.text.empty() || right.text.empty() ||
        left.text.size() + right.text.size() != merge.length) {
      continue;  // one of them was merged with another
    }
    left.text = {left.text.data(), merge.length};
    right.text = {};
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = merge.left;
    try_merge(left.previous, merge.left);
    try_merge(merge.left, left.next);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    EncodeSymbol(symbols[static_cast<size_t>(i)].text, out);
  }
}

void SentencePiece::EncodeSymbol(std::string_view symbol, std::vector<int32_t>* out) const {
  const auto found = normal_.find(symbol);
  if (found != normal_.end()) {
    out->push_back(found->second);
    return;
  }
  std::vector<int32_t> bytes;
  for (const char c : symbol) bytes.push_back(byte_tokens_[static_cast<uint8_t>(c)]);
  if (std::find(bytes.begin(), bytes.end(), -1) == bytes.end()) {
    out->insert(out->end(), bytes.begin(), bytes.end());
  } else {
    out->push_back(unknown_);
  }
}

}  // namespace riffle::engine
