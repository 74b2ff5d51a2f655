#include "engine/tokenizer/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <queue>

#include "engine/tokenizer/utf8.h"

namespace riffle::engine {
namespace {

constexpr std::string_view kSpace = "\u2581";        // how tokens write a space
constexpr std::string_view kReplacement = "\uFFFD";  // for bytes that are not UTF-8

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

// Moves what is whole from the front of `bytes` to the result; bytes that are not UTF-8 become
// U+FFFD there. What is left is empty or the start of a character.
std::string TakeCharacters(std::string* bytes) {
  std::string text;
  std::string_view rest = *bytes;
  while (!rest.empty()) {
    const Utf8Character first = FirstCharacter(rest);
    if (first.kind == Utf8Character::kIncomplete) break;
    text += first.kind == Utf8Character::kValid ? rest.substr(0, first.length) : kReplacement;
    rest.remove_prefix(first.length);
  }
  bytes->erase(0, bytes->size() - rest.size());
  return text;
}

// A piece of the fragment that is being merged, in a list by position.
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

Tokenizer::Tokenizer(const GgufFile& file) {
  const std::string_view model = file.String("tokenizer.ggml.model");
  if (model != "llama") {
    file.Fail(fmt::format("its tokenizer is \"{}\"; only \"llama\" (SentencePiece) can be used",
                          Printable(model)));
  }
  byte_tokens_.fill(-1);
  ReadTokens(file);
  ReadSettings(file);
  special_.Finish();
}

void Tokenizer::ReadTokens(const GgufFile& file) {
  const auto texts = file.Strings("tokenizer.ggml.tokens");
  const auto scores = file.Floats("tokenizer.ggml.scores");
  const auto types = file.Integers("tokenizer.ggml.token_type");
  if (texts.empty() || texts.size() > INT32_MAX) {
    file.Fail(fmt::format("its vocabulary has {} tokens", texts.size()));
  }
  if (scores.size() != texts.size() || types.size() != texts.size()) {
    file.Fail(fmt::format("its vocabulary has {} tokens, but {} scores and {} types", texts.size(),
                          scores.size(), types.size()));
  }
  normal_.reserve(texts.size());
  tokens_.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto token = static_cast<int32_t>(i);
    const std::string_view text = texts[i];
    if (types[i] < 1 || types[i] > 6) {
      file.Fail(fmt::format("token {} is of type {}; 1 to 6 are possible", i, types[i]));
    }
    if (std::isnan(scores[i])) file.Fail(fmt::format("the score of token {} is not a number", i));
    const auto type = static_cast<Type>(types[i]);
    tokens_.push_back({"", scores[i], type});
    if (type == Type::kByte) {
      ReadByteToken(file, token, text);
    } else if (type == Type::kNormal) {
      normal_.emplace(text, token);
      tokens_[i].piece = Replace(text, kSpace, " ");
    } else if (type == Type::kUserDefined || type == Type::kControl) {
      const bool control = type == Type::kControl;
      special_.Add(Replace(text, " ", kSpace), token);
      if (!control) tokens_[i].piece = Replace(text, kSpace, " ");
    }
  }
}

// "<0x0A>"
void Tokenizer::ReadByteToken(const GgufFile& file, int32_t token, std::string_view text) {
  const auto digit = [](char c) { return std::string_view("0123456789ABCDEF").find(c); };
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>' || digit(text[3]) > 15 ||
      digit(text[4]) > 15) {
    file.Fail(
        fmt::format("token {} is a byte, but its text is \"{}\", not \"<0x00>\" to \"<0xFF>\"",
                    token, Printable(text)));
  }
  const size_t byte = digit(text[3]) * 16 + digit(text[4]);
  if (byte_tokens_[byte] < 0) byte_tokens_[byte] = token;
  tokens_[static_cast<size_t>(token)].piece = std::string(1, static_cast<char>(byte));
}

void Tokenizer::ReadSettings(const GgufFile& file) {
  const auto number = [&](std::string_view name) -> int32_t {
    const std::string key = fmt::format("tokenizer.ggml.{}", name);
    if (!file.Has(key)) return -1;
    const int64_t token = file.Integer(key);
    if (token >= vocab()) {
      file.Fail(fmt::format("metadata \"{}\" is {}, but there are {} tokens", key, token, vocab()));
    }
    return static_cast<int32_t>(token);
  };
  const auto flag = [&](std::string_view name, bool otherwise) {
    const std::string key = fmt::format("tokenizer.ggml.{}", name);
    return file.Has(key) ? file.Bool(key) : otherwise;
  };
  // Without the keys llama.cpp puts BOS and a space before a text.
  if (flag("add_bos_token", true)) {
    bos_ = number("bos_token_id");
    if (bos_ < 0) file.Fail("has no metadata \"tokenizer.ggml.bos_token_id\"");
  }
  if (flag("add_eos_token", false)) {
    eos_ = number("eos_token_id");
    if (eos_ < 0) file.Fail("has no metadata \"tokenizer.ggml.eos_token_id\"");
  }
  space_prefix_ = flag("add_space_prefix", true);
  unknown_ = number("unknown_token_id");
  const bool all_bytes =
      std::find(byte_tokens_.begin(), byte_tokens_.end(), -1) == byte_tokens_.end();
  if (unknown_ < 0 && !all_bytes) {
    file.Fail("its vocabulary has neither a token for every byte nor one for unknown characters");
  }
}

std::vector<int32_t> Tokenizer::Encode(std::string_view input) const {
  const size_t invalid = FindInvalidUtf8(input);
  if (invalid != std::string_view::npos) {
    throw BadText(fmt::format("is not valid UTF-8: byte 0x{:02x} at offset {}",
                              static_cast<uint8_t>(input[invalid]), invalid));
  }
  const std::string spelled = Replace(input, " ", kSpace);
  const std::string_view text = spelled;
  std::vector<int32_t> tokens;
  if (bos_ >= 0) tokens.push_back(bos_);
  size_t start = 0;  // of the fragment at hand
  for (const SpecialTokens::Match& special : special_.Find(text)) {
    EncodeFragment(text.substr(start, special.start - start), &tokens);
    tokens.push_back(special.token);
    start = special.start + special.length;
  }
  EncodeFragment(text.substr(start), &tokens);
  if (eos_ >= 0) tokens.push_back(eos_);
  return tokens;
}

void Tokenizer::EncodeFragment(std::string_view fragment, std::vector<int32_t>* out) const {
  if (fragment.empty()) return;
  const std::string text = std::string(space_prefix_ ? kSpace : "") + std::string(fragment);
  std::vector<Symbol> symbols;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t length = FirstCharacter(rest).length;
    const auto i = static_cast<int32_t>(symbols.size());
    symbols.push_back({rest.substr(0, length), i - 1, i + 1});
    rest.remove_prefix(length);
  }
  symbols.back().next = -1;

  std::priority_queue<Merge> merges;
  const auto try_merge = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const std::string_view a = symbols[static_cast<size_t>(left)].text;
    const size_t length = a.size() + symbols[static_cast<size_t>(right)].text.size();
    const auto found = normal_.find(std::string_view(a.data(), length));  // they are adjacent
    if (found == normal_.end()) return;
    merges.push({tokens_[static_cast<size_t>(found->second)].score, left, right, length});
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

void Tokenizer::EncodeSymbol(std::string_view symbol, std::vector<int32_t>* out) const {
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

std::string_view Tokenizer::Piece(int32_t token) const {
  if (token < 0 || token >= vocab()) {
    throw std::out_of_range(fmt::format("token {} of a vocabulary of {}", token, vocab()));
  }
  return tokens_[static_cast<size_t>(token)].piece;
}

std::string Tokenizer::Decode(const std::vector<int32_t>& tokens) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (const int32_t token : tokens) text += decoder.Push(token);
  text += decoder.Finish();
  if (space_prefix_ && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::string StreamDecoder::Push(int32_t token) {
  pending_ += tokenizer_->Piece(token);
  return TakeCharacters(&pending_);
}

std::string StreamDecoder::Finish() {
  const bool incomplete = !pending_.empty();
  pending_.clear();
  return incomplete ? std::string(kReplacement) : std::string();
}

}  // namespace riffle::engine
