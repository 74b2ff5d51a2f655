// Byte-level BPE and the unigram model on vocabularies that a fuzzer makes. Of byte-level BPE:
// merges that overlap, that come twice, or that make each other's tokens; bytes without a token. Of
// the unigram model: tokens that contain each other, and equal scores. Any text must give the
// tokens that a slow reference finds, and Decode must restore it if every byte has a token.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "fuzz/bytes.h"
#include "testing/gguf_writer.h"

namespace riffle::fuzz {
namespace {

using engine::Tokenizer;
using Writer = riffle::testing::GgufWriter;
using Tokens = std::vector<int32_t>;

void Expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
  }
}

// How files write a byte: printable Latin-1 as itself, the others from U+0100 on.
std::string Written(int byte) {
  static const std::vector<int> codes = [] {
    std::vector<int> all;
    int next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad);
      all.push_back(printable ? b : next++);
    }
    return all;
  }();
  const int code = codes[static_cast<size_t>(byte)];
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

// Letters, digits, spaces, marks, quotes and characters of several bytes.
std::string TakeText(Bytes& bytes, int64_t max_letters) {
  const std::string letters[] = {"a",  "a", "b",  "c", "s",      "1",      "2",          " ",
                                 "\n", "'", "\r", ".", "\u00e9", "\u0301", "\U0001f98a", "\u3000"};
  std::string text;
  for (int64_t i = bytes.Between(0, max_letters); i > 0; --i) {
    text += letters[bytes.Take<uint8_t>() % std::size(letters)];
  }
  return text;
}

struct BpeVocabulary {
  std::vector<std::string> texts;  // as files write them
  std::vector<std::pair<int32_t, int32_t>> merges;
  std::string pre;
  bool lacks_bytes = false;

  explicit BpeVocabulary(Bytes& bytes) {
    const char* const kinds[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    pre = kinds[bytes.Take<uint8_t>() % 4];
    lacks_bytes = bytes.OneIn(4);
    for (int byte = 0; byte < 256; ++byte) {
      texts.push_back(lacks_bytes && (byte == 'b' || byte == 0xa9) ? "" : Written(byte));
    }
    for (int64_t i = bytes.Between(0, 40); i > 0; --i) {
      const int32_t left = TakeToken(bytes), right = TakeToken(bytes);
      const std::string both = Text(left) + Text(right);
      if (Text(left).empty() || Text(right).empty() || both.size() > 200) continue;
      if (Find(both) < 0) texts.push_back(both);
      merges.emplace_back(left, right);
    }
  }
  const std::string& Text(int32_t token) const { return texts[static_cast<size_t>(token)]; }
  int32_t Find(const std::string& text) const {
    const auto found = std::find(texts.begin(), texts.end(), text);
    return found == texts.end() ? -1 : static_cast<int32_t>(found - texts.begin());
  }
  // Often the token of a byte that occurs in the texts.
  int32_t TakeToken(Bytes& bytes) const {
    const auto which = bytes.Take<uint8_t>();
    constexpr std::string_view kFrequent = "aabcs12 \n'.\xc3\xa9\xcc\x81";
    if (which < 128) return static_cast<uint8_t>(kFrequent[which % kFrequent.size()]);
    return static_cast<int32_t>(which * 7 % texts.size());
  }
  std::vector<uint8_t> File() const {
    std::vector<std::string> written;
    for (const auto& [left, right] : merges) written.push_back(Text(left) + " " + Text(right));
    std::vector<std::string> unique = texts;
    for (size_t i = 0; i < unique.size(); ++i) {
      if (unique[i].empty()) unique[i] = "\u4e00" + std::to_string(i);  // of no byte
    }
    Writer writer;
    writer.AddString("tokenizer.ggml.model", "gpt2");
    writer.AddString("tokenizer.ggml.pre", pre);
    writer.AddArray("tokenizer.ggml.tokens", Writer::kString, unique);
    writer.AddArray("tokenizer.ggml.token_type", Writer::kI32,
                    std::vector<int32_t>(unique.size(), 1));
    writer.AddArray("tokenizer.ggml.merges", Writer::kString, written);
    writer.Add<uint8_t>("tokenizer.ggml.add_bos_token", Writer::kBool, 0);
    return writer.Finish();
  }

  // Encodes a pre-token; looks at all pairs before each merge.
  Tokens Encode(std::string_view pre_token) const {
    std::string whole;
    for (const char c : pre_token) whole += Written(static_cast<uint8_t>(c));
    if (pre == "llama-bpe" && Find(whole) >= 0) return {Find(whole)};
    Tokens tokens;
    for (const char c : pre_token) {
      const int32_t token = static_cast<uint8_t>(c);
      if (!Text(token).empty()) tokens.push_back(token);
    }
    for (;;) {
      size_t rank = merges.size(), place = 0;
      for (size_t i = 0; i + 1 < tokens.size(); ++i) {
        const auto pair = std::pair(tokens[i], tokens[i + 1]);
        const auto found = std::find(merges.begin(), merges.end(), pair) - merges.begin();
        if (static_cast<size_t>(found) < rank) {
          rank = static_cast<size_t>(found);
          place = i;
        }
      }
      if (rank == merges.size()) return tokens;
      tokens[place] = Find(Text(tokens[place]) + Text(tokens[place + 1]));
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
  }
};

void RunBpe(Bytes& bytes) {
  const BpeVocabulary vocabulary(bytes);
  const std::vector<uint8_t> file = vocabulary.File();
  const Tokenizer tokenizer(engine::GgufFile::Parse(file, "fuzz.gguf"));
  const std::string text = TakeText(bytes, 120);
  const Tokens tokens = tokenizer.Encode(text);
  const bool composes = vocabulary.pre == "qwen2" && text.find("\u0301") != std::string::npos;
  if (!vocabulary.lacks_bytes && !composes) {
    Expect(tokenizer.Decode(tokens) == text, "the text does not come back");
  }
  if (composes) return;  // the reference does not
  Tokens wanted;
  std::string_view rest = text;
  for (const size_t length : engine::SplitText(*engine::PreTokenizerOf(vocabulary.pre), text)) {
    Expect(length > 0 && length <= rest.size(), "a pre-token of no length");
    const Tokens part = vocabulary.Encode(rest.substr(0, length));
    wanted.insert(wanted.end(), part.begin(), part.end());
    rest.remove_prefix(length);
  }
  Expect(rest.empty(), "pre-tokens do not add up to the text");
  Expect(tokens == wanted, "other tokens than the reference's");
}

// Compares the sum of the tokens' scores with the best over all ways to write the text as tokens.
void RunUnigram(Bytes& bytes) {
  std::vector<std::string> texts = {"<unk>"};
  std::vector<float> scores = {0};
  for (int64_t i = bytes.Between(0, 40); i > 0; --i) {
    const std::string token = TakeText(bytes, 6);
    if (token.empty() || token.find(' ') != std::string::npos) continue;
    if (std::find(texts.begin(), texts.end(), token) != texts.end()) continue;
    texts.push_back(token);
    scores.push_back(-static_cast<float>(bytes.Take<uint8_t>() % 32) / 4);
  }
  const double unknown = *std::min_element(scores.begin(), scores.end()) - 10.0;
  const auto normal = static_cast<int32_t>(texts.size());
  std::vector<int32_t> types(texts.size(), 1);
  types[0] = 2;
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof(text), "<0x%02X>", static_cast<unsigned>(byte));
    texts.emplace_back(text);
    scores.push_back(0);
    types.push_back(6);
  }
  Writer writer;
  writer.AddString("tokenizer.ggml.model", "t5");
  writer.AddArray("tokenizer.ggml.tokens", Writer::kString, texts);
  writer.AddArray("tokenizer.ggml.scores", Writer::kF32, scores);
  writer.AddArray("tokenizer.ggml.token_type", Writer::kI32, types);
  writer.Add<int32_t>("tokenizer.ggml.unknown_token_id", Writer::kI32, 0);
  writer.Add<uint8_t>("tokenizer.ggml.add_eos_token", Writer::kBool, 0);
  writer.Add<uint8_t>("tokenizer.ggml.add_space_prefix", Writer::kBool, 0);
  const std::vector<uint8_t> file = writer.Finish();
  const Tokenizer tokenizer(engine::GgufFile::Parse(file, "fuzz.gguf"));
  std::string text = TakeText(bytes, 120);
  std::erase(text, ' ');
  const Tokens tokens = tokenizer.Encode(text);
  Expect(tokenizer.Decode(tokens) == text, "the text does not come back");

  std::vector<double> best(text.size() + 1, -std::numeric_limits<double>::infinity());
  best[text.size()] = 0;
  for (size_t at = text.size(); at-- > 0;) {
    const std::string_view rest = std::string_view(text).substr(at);
    const engine::Utf8Character first = engine::FirstCharacter(rest);
    if (first.kind != engine::Utf8Character::kValid) continue;
    bool single = false;
    for (int32_t t = 1; t < normal; ++t) {
      const std::string& token = texts[static_cast<size_t>(t)];
      if (!rest.starts_with(token)) continue;
      single = single || token.size() == first.length;
      best[at] = std::max(best[at], scores[static_cast<size_t>(t)] + best[at + token.size()]);
    }
    if (!single) best[at] = std::max(best[at], unknown + best[at + first.length]);
  }
  double sum = 0;
  for (const int32_t token : tokens) {
    const bool continues = token >= normal && ((token - normal) & 0xc0) == 0x80;
    sum += token < normal ? scores[static_cast<size_t>(token)] : continues ? 0 : unknown;
  }
  Expect(sum > best[0] - 1e-6 && sum < best[0] + 1e-6, "there is a better way");
}

}  // namespace
}  // namespace riffle::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  riffle::fuzz::Bytes bytes(data, size);
  if (bytes.OneIn(2)) {
    riffle::fuzz::RunUnigram(bytes);
  } else {
    riffle::fuzz::RunBpe(bytes);
  }
  return 0;
}
