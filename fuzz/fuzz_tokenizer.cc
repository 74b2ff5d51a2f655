// The tokenizer on hostile vocabularies: tokens that begin alike, equal scores, parts of
// characters, missing bytes, settings that point nowhere. A vocabulary that contradicts itself must
// be refused with a BadModel, no other may be. Any text must then give the tokens that a slow
// reference finds, be restored by Decode, and take time in proportion to its length.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "fuzz/bytes.h"
#include "testing/gguf_writer.h"

namespace riffle::fuzz {
namespace {

using engine::BadModel;
using engine::BadText;
using engine::Tokenizer;
using Writer = riffle::testing::GgufWriter;
using Tokens = std::vector<int32_t>;

constexpr std::string_view kSpace = "\u2581";

enum Type : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

void Expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }
}

std::string ReplaceAll(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// Letters that form many equal pairs, a space in both spellings, characters of several bytes, and
// bytes that are none.
std::string TakeLetter(Bytes& bytes) {
  const std::string letters[] = {
      "a", "a", "a", "b", "b", "c", " ", std::string(kSpace), "<", ">", "\u00e9", "\U0001f98a"};
  const size_t which = bytes.Take<uint8_t>() % (std::size(letters) + 1);
  if (which < std::size(letters)) return letters[which];
  return std::string(1, static_cast<char>(bytes.Take<uint8_t>()));
}

std::string TakeText(Bytes& bytes, int64_t max_letters) {
  std::string text;
  for (int64_t i = bytes.Between(0, max_letters); i > 0; --i) text += TakeLetter(bytes);
  return text;
}

std::string ByteText(size_t byte) {
  char text[8];
  std::snprintf(text, sizeof(text), "<0x%02X>", static_cast<unsigned>(byte));
  return text;
}

// The byte that the text of a byte token names.
std::optional<size_t> ByteOf(const std::string& text) {
  static const std::map<std::string, size_t> bytes = [] {
    std::map<std::string, size_t> all;
    for (size_t byte = 0; byte < 256; ++byte) all.emplace(ByteText(byte), byte);
    return all;
  }();
  const auto found = bytes.find(text);
  return found == bytes.end() ? std::nullopt : std::optional<size_t>(found->second);
}

struct Vocabulary {
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<int32_t> types;
  std::optional<int32_t> bos, eos, unknown;
  bool add_bos = false, add_eos = false, space_prefix = false;

  explicit Vocabulary(Bytes& bytes) {
    if (!bytes.OneIn(4)) AddAllBytes();
    for (int64_t i = bytes.Between(0, 50); i > 0; --i) AddToken(bytes);
    const auto flags = bytes.Take<uint8_t>();
    add_bos = (flags & 1) != 0;
    add_eos = (flags & 2) != 0;
    space_prefix = (flags & 4) != 0;
    if ((flags & 8) == 0) bos = TakeToken(bytes);
    if ((flags & 16) == 0) eos = TakeToken(bytes);
    if ((flags & 32) == 0) unknown = TakeToken(bytes);
  }

  size_t size() const { return texts.size(); }

  bool valid() const {
    std::vector<bool> has(256);
    for (size_t i = 0; i < size(); ++i) {
      if (types[i] < 1 || types[i] > 6 || std::isnan(scores[i])) return false;
      if (types[i] != kByte) continue;
      const std::optional<size_t> byte = ByteOf(texts[i]);
      if (!byte.has_value()) return false;
      has[*byte] = true;
    }
    const bool all_bytes = std::ranges::count(has, true) == 256;
    const auto names_token = [&](const std::optional<int32_t>& token) {
      return token.has_value() && *token < static_cast<int32_t>(size());
    };
    return size() > 0 && (!add_bos || names_token(bos)) && (!add_eos || names_token(eos)) &&
           (unknown.has_value() ? names_token(unknown) : all_bytes);
  }

  std::vector<uint8_t> File() const {
    Writer writer;
    writer.AddString("tokenizer.ggml.model", "llama");
    writer.AddArray("tokenizer.ggml.tokens", Writer::kString, texts);
    writer.AddArray("tokenizer.ggml.scores", Writer::kF32, scores);
    writer.AddArray("tokenizer.ggml.token_type", Writer::kI32, types);
    const auto number = [&](const char* key, const std::optional<int32_t>& token) {
      if (token.has_value()) writer.Add(key, Writer::kI32, *token);
    };
    number("tokenizer.ggml.bos_token_id", bos);
    number("tokenizer.ggml.eos_token_id", eos);
    number("tokenizer.ggml.unknown_token_id", unknown);
    const auto flag = [&](const char* key, bool on) {
      writer.Add(key, Writer::kBool, static_cast<uint8_t>(on));
    };
    flag("tokenizer.ggml.add_bos_token", add_bos);
    flag("tokenizer.ggml.add_eos_token", add_eos);
    flag("tokenizer.ggml.add_space_prefix", space_prefix);
    return writer.Finish();
  }

 private:
  void Add(std::string text, float score, int32_t type) {
    texts.push_back(std::move(text));
    scores.push_back(score);
    types.push_back(type);
  }

  void AddAllBytes() {
    for (size_t byte = 0; byte < 256; ++byte) Add(ByteText(byte), 0, kByte);
  }

  void AddToken(Bytes& bytes) {
    const int kind = bytes.Take<uint8_t>() % 16;
    const auto type =
        static_cast<int32_t>(kind < 9    ? kNormal
                             : kind < 12 ? kUserDefined
                             : kind < 15 ? kind - 10  // unknown, control, user-defined
                                         : bytes.Take<int8_t>() % 9);
    // Few scores, so that many are equal; sometimes any.
    const float score =
        bytes.OneIn(16) ? bytes.Take<float>() : -static_cast<float>(bytes.Take<uint8_t>() % 5);
    std::string text;
    if (!texts.empty() && bytes.OneIn(2)) {  // extends an earlier token's text
      text = texts[bytes.Take<uint8_t>() % size()];
    }
    text += bytes.OneIn(8) ? std::string(bytes.Take<uint8_t>(), 'a') : TakeText(bytes, 5);
    Add(text, score, type);
  }

  int32_t TakeToken(Bytes& bytes) const {
    return static_cast<int32_t>(bytes.Between(0, static_cast<int64_t>(size())));
  }
};

// A brute-force tokenizer: tries each special token at each place, and all pairs before each merge.
class Reference {
 public:
  // `plain`: for plain text, in which control tokens do not count.
  explicit Reference(const Vocabulary& vocabulary, bool plain = false) : v_(vocabulary) {
    for (size_t i = 0; i < v_.size(); ++i) {
      const auto token = static_cast<int32_t>(i);
      if (v_.types[i] == kNormal) normal_.emplace(v_.texts[i], token);
      if (v_.types[i] == kByte) bytes_.emplace(*ByteOf(v_.texts[i]), token);
      if ((v_.types[i] == kControl && !plain) || v_.types[i] == kUserDefined) {
        special_.emplace(ReplaceAll(v_.texts[i], " ", kSpace), token);
      }
    }
    special_.erase("");
  }

  Tokens Encode(const std::string& input) const {
    const std::string text = ReplaceAll(input, " ", kSpace);
    Tokens tokens;
    if (v_.add_bos) tokens.push_back(*v_.bos);
    std::string fragment;
    for (size_t at = 0; at < text.size();) {
      const auto longest = LongestSpecial(std::string_view(text).substr(at));
      if (longest == special_.end()) {
        fragment += text[at++];
        continue;
      }
      EncodeFragment(fragment, tokens);
      fragment.clear();
      tokens.push_back(longest->second);
      at += longest->first.size();
    }
    EncodeFragment(fragment, tokens);
    if (v_.add_eos) tokens.push_back(*v_.eos);
    return tokens;
  }

 private:
  using TokenOfText = std::map<std::string, int32_t>;

  TokenOfText::const_iterator LongestSpecial(std::string_view text) const {
    auto longest = special_.end();
    for (auto it = special_.begin(); it != special_.end(); ++it) {
      if (text.starts_with(it->first) &&
          (longest == special_.end() || it->first.size() > longest->first.size())) {
        longest = it;
      }
    }
    return longest;
  }

  void EncodeFragment(const std::string& fragment, Tokens& tokens) const {
    if (fragment.empty()) return;
    const std::string text = (v_.space_prefix ? std::string(kSpace) : "") + fragment;
    std::vector<std::string> symbols;
    for (size_t at = 0; at < text.size(); at += symbols.back().size()) {
      const std::string_view rest = std::string_view(text).substr(at);
      symbols.emplace_back(rest.substr(0, engine::FirstCharacter(rest).length));
    }
    while (MergeBest(symbols)) {
    }
    for (const std::string& symbol : symbols) AddSymbol(symbol, tokens);
  }

  bool MergeBest(std::vector<std::string>& symbols) const {
    size_t best = symbols.size();
    float best_score = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = normal_.find(symbols[i] + symbols[i + 1]);
      if (found == normal_.end()) continue;
      const float score = v_.scores[static_cast<size_t>(found->second)];
      if (best == symbols.size() || score > best_score) {
        best = i;
        best_score = score;
      }
    }
    if (best == symbols.size()) return false;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    return true;
  }

  void AddSymbol(const std::string& symbol, Tokens& tokens) const {
    if (const auto found = normal_.find(symbol); found != normal_.end()) {
      tokens.push_back(found->second);
      return;
    }
    const auto has_byte = [&](char c) { return bytes_.contains(static_cast<uint8_t>(c)); };
    if (!std::ranges::all_of(symbol, has_byte)) {
      tokens.push_back(*v_.unknown);
      return;
    }
    for (const char c : symbol) tokens.push_back(bytes_.at(static_cast<uint8_t>(c)));
  }

  const Vocabulary& v_;
  TokenOfText normal_, special_;
  std::map<size_t, int32_t> bytes_;
};

std::string DecodeAsStream(const Tokenizer& tokenizer, const Tokens& tokens) {
  engine::StreamDecoder decoder(tokenizer);
  std::string text;
  for (const int32_t token : tokens) {
    const std::string part = decoder.Push(token);
    Expect(engine::FindInvalidUtf8(part) == std::string::npos, "a part of a stream is not UTF-8");
    text += part;
  }
  return text + decoder.Finish();
}

// Whether nothing of a text is lost: each byte has a token, each token has its text.
bool Reversible(const Vocabulary& v) {
  const auto none = [&](int32_t type) { return std::ranges::count(v.types, type) == 0; };
  std::map<size_t, bool> has;
  for (size_t i = 0; i < v.size(); ++i) {
    if (v.types[i] == kByte) has[*ByteOf(v.texts[i])] = true;
  }
  return has.size() == 256 && none(kControl) && !v.space_prefix && !v.add_bos && !v.add_eos;
}

void CheckText(const Vocabulary& vocabulary, const Tokenizer& tokenizer, const std::string& text) {
  const bool is_utf8 = engine::FindInvalidUtf8(text) == std::string::npos;
  Tokens tokens;
  try {
    tokens = tokenizer.Encode(text);
  } catch (const BadText&) {
    Expect(!is_utf8, "valid UTF-8 was refused");
    return;
  }
  Expect(is_utf8, "invalid UTF-8 was taken");
  Expect(tokens == Reference(vocabulary).Encode(text), "other tokens than the reference's");
  const std::vector<engine::TextPart> plain = {{text, true}};
  Expect(tokenizer.Encode(plain) == Reference(vocabulary, true).Encode(text),
         "other tokens of a plain text than the reference's");
  const std::string decoded = tokenizer.Decode(tokens);
  Expect(engine::FindInvalidUtf8(decoded) == std::string::npos, "the text is not UTF-8");
  if (!vocabulary.space_prefix) {
    Expect(decoded == DecodeAsStream(tokenizer, tokens), "Decode and StreamDecoder differ");
  }
  if (Reversible(vocabulary)) {
    // A space without a token of its own is spelled by the bytes of U+2581, and comes back as that.
    Expect(ReplaceAll(decoded, kSpace, " ") == ReplaceAll(text, kSpace, " "),
           "the text does not come back");
  }
}

double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Encodes 64 KiB of repetitions of the text: an algorithm of quadratic time takes 10 s or more, one
// of linear time less than 0.3 s.
void CheckTimeIsLinear(const Tokenizer& tokenizer, const std::string& text) {
  if (text.empty() || engine::FindInvalidUtf8(text) != std::string::npos) return;
  std::string many;
  while (many.size() < (1 << 16)) many += text;
  const double start = ThreadSeconds();
  tokenizer.Decode(tokenizer.Encode(many));
  Expect(ThreadSeconds() - start < 3, "a long text takes longer than its length explains");
}

void Run(Bytes& bytes) {
  const bool is_long = bytes.OneIn(16);
  const Vocabulary vocabulary(bytes);
  const std::vector<uint8_t> file = vocabulary.File();
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer.emplace(engine::GgufFile::Parse(file, "fuzz.gguf"));
  } catch (const BadModel&) {
    Expect(!vocabulary.valid(), "a valid vocabulary was refused");
    return;
  }
  Expect(vocabulary.valid(), "a vocabulary that contradicts itself was taken");
  const std::string text = TakeText(bytes, 100);
  CheckText(vocabulary, *tokenizer, text);
  if (is_long) CheckTimeIsLinear(*tokenizer, text);
}

}  // namespace
}  // namespace riffle::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  riffle::fuzz::Bytes bytes(data, size);
  riffle::fuzz::Run(bytes);
  return 0;
}
