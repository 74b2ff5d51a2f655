#include "engine/tokenizer/byte_bpe.h"

#include <fmt/format.h>

#include <queue>
#include <tuple>

#include "engine/tokenizer/unicode.h"

namespace riffle::engine {
namespace {

// The characters that stand for bytes: printable Latin-1 characters stand for themselves, U+0100,
// U+0101, ... for the other bytes in order.
struct ByteCharacters {
  std::array<char32_t, 256> of_byte;
  std::array<int, 512> byte_of;  // -1: the character stands for none

  ByteCharacters() {
    byte_of.fill(-1);
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
      of_byte[byte] = printable ? byte : next++;
      byte_of[of_byte[byte]] = static_cast<int>(byte);
    }
  }
};

const ByteCharacters& Bytes() {
  static const ByteCharacters characters;
  return characters;
}

std::string Utf8Of(char32_t code) {  // below U+0800
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

// A token of the pre-token that is being merged, in a list by position.
struct Symbol {
  int32_t token;  // -1: merged into the one before
  int32_t previous;
  int32_t next;  // -1: none
};

struct Candidate {
  int32_t rank;
  int32_t left;
  int32_t right;
  uint64_t pair;  // the tokens when this was found

  // std::priority_queue puts the greatest on top.
  bool operator<(const Candidate& other) const {
    return std::tie(rank, left) > std::tie(other.rank, other.left);
  }
};

}  // namespace

ByteBpe::ByteBpe(const GgufFile& file, const std::vector<std::string_view>& texts,
                 const std::vector<TokenType>& types) {
  const std::string_view name = file.String("tokenizer.ggml.pre");
  const std::optional<PreTokenizer> pre_tokenizer = PreTokenizerOf(name);
  if (!pre_tokenizer) {
    file.Fail(fmt::format("its pre-tokenizer is \"{}\"; known are {}", Printable(name),
                          PreTokenizerNames()));
  }
  pre_tokenizer_ = *pre_tokenizer;
  TokenOfText written;  // tokens by their texts in the file
  written.reserve(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto token = static_cast<int32_t>(i);
    if (types[i] == TokenType::kByte) {
      file.Fail(fmt::format("token {} is a byte token; byte-level BPE has none", i));
    }
    if (types[i] != TokenType::kNormal) continue;
    written.emplace(texts[i], token);
    // Llama 3's merges do not lead to all of its tokens.
    if (pre_tokenizer_ == PreTokenizer::kLlama3)
      whole_.emplace(TokenBytes(texts[i], types[i]), token);
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = written.find(Utf8Of(Bytes().of_byte[byte]));
    byte_tokens_[byte] = found == written.end() ? -1 : found->second;
  }
  ReadMerges(file, written);
}

void ByteBpe::ReadMerges(const GgufFile& file, const TokenOfText& written) {
  const auto merges = file.Strings("tokenizer.ggml.merges");
  merge_of_.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const size_t space = merges[i].find(' ');
    const auto fail = [&](const char* text) {
      file.Fail(fmt::format("merge {}, \"{}\", {}", i, Printable(merges[i]), text));
    };
    if (space == std::string_view::npos) fail("is not two tokens with a space between them");
    const std::string_view left = merges[i].substr(0, space);
    const std::string_view right = merges[i].substr(space + 1);
    const auto a = written.find(left);
    const auto b = written.find(right);
    const auto both = written.find(std::string(left) + std::string(right));
    if (a == written.end() || b == written.end() || both == written.end()) {
      fail("names or makes a token that is not in the vocabulary");
    }
    merge_of_.emplace(PairKey(a->second, b->second), Merge{static_cast<int32_t>(i), both->second});
  }
}

std::string ByteBpe::TokenBytes(std::string_view text, TokenType type) const {
  if (type != TokenType::kNormal) return std::string(text);
  std::string bytes;
  while (!text.empty()) {
    const Character first = DecodeFirst(text);
    const int byte = first.code < 512 ? Bytes().byte_of[first.code] : -1;
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
    } else {  // stands for itself
      bytes += text.substr(0, first.length);
    }
    text.remove_prefix(first.length);
  }
  return bytes;
}

void ByteBpe::Encode(std::string_view fragment, std::vector<int32_t>* out) const {
  const std::string text =
      pre_tokenizer_ == PreTokenizer::kQwen2 ? Compose(fragment) : std::string(fragment);
  std::string_view rest = text;
  for (const size_t length : SplitText(pre_tokenizer_, text)) {
    EncodePreToken(rest.substr(0, length), out);
    rest.remove_prefix(length);
  }
}

void ByteBpe::EncodePreToken(std::string_view pre_token, std::vector<int32_t>* out) const {
  if (const auto found = whole_.find(pre_token); found != whole_.end()) {
    out->push_back(found->second);
    return;
  }
  std::vector<Symbol> symbols;
  for (const char c : pre_token) {
    const int32_t token = byte_tokens_[static_cast<uint8_t>(c)];
    const auto i = static_cast<int32_t>(symbols.size());
    if (token >= 0) symbols.push_back({token, i - 1, i + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  const auto at = [&](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  std::priority_queue<Candidate> candidates;
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const uint64_t pair = PairKey(at(left).token, at(right).token);
    const auto found = merge_of_.find(pair);
    if (found != merge_of_.end()) candidates.push({found->second.rank, left, right, pair});
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) consider(i, i + 1);
  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Symbol& left = at(best.left);
    Symbol& right = at(best.right);
    if (left.token < 0 || right.token < 0 || PairKey(left.token, right.token) != best.pair) {
      continue;  // one of them was merged with another
    }
    left.token = merge_of_.find(best.pair)->second.token;
    right.token = -1;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = best.left;
    consider(left.previous, best.left);
    consider(best.left, left.next);
  }
  for (int32_t i = 0; i >= 0; i = at(i).next) out->push_back(at(i).token);
}

}  // namespace riffle::engine
