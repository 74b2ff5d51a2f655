// Byte-level BPE: the vocabulary of SmolLM2 with four pre-tokenizers against the library tokenizers
// (tests/data/bpe_tokens.json, by make_bpe_fixture.py), pre-tokens by hand, and contradictory
// files.
#include "engine/tokenizer/byte_bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <set>

#include "engine/default_model.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/unicode.h"
#include "testing/gguf_writer.h"
#include "tests/engine/token_fixture.h"

namespace riffle::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Writer = riffle::testing::GgufWriter;
using Tokens = std::vector<int32_t>;

const GgufFile& SmolLm2() {
  static const GgufFile file = GgufFile::Open(ChatModelPath());
  return file;
}

template <typename T>
std::vector<std::string> Strings(const std::vector<T>& views) {
  return {views.begin(), views.end()};
}

// SmolLM2's tokenizer with another pre-tokenizer, without BOS.
Tokenizer With(const std::string& pre_tokenizer) {
  Writer writer;
  writer.AddString("tokenizer.ggml.model", "gpt2");
  writer.AddString("tokenizer.ggml.pre", pre_tokenizer);
  writer.AddArray("tokenizer.ggml.tokens", Writer::kString,
                  Strings(SmolLm2().Strings("tokenizer.ggml.tokens")));
  writer.AddArray("tokenizer.ggml.merges", Writer::kString,
                  Strings(SmolLm2().Strings("tokenizer.ggml.merges")));
  std::vector<int32_t> types;
  for (const int64_t type : SmolLm2().Integers("tokenizer.ggml.token_type")) {
    types.push_back(static_cast<int32_t>(type));
  }
  writer.AddArray("tokenizer.ggml.token_type", Writer::kI32, types);
  writer.Add<uint8_t>("tokenizer.ggml.add_bos_token", Writer::kBool, 0);
  const std::vector<uint8_t> bytes = writer.Finish();
  return Tokenizer(GgufFile::Parse(bytes, pre_tokenizer));
}

// How files write a byte.
std::string Written(int byte) {
  const bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
  const int before = byte < 0x21 ? byte : byte < 0xa1 ? 0x21 + byte - 0x7f : 0x43;
  const int code = printable ? byte : 0x100 + before;
  return code < 0x80 ? std::string(1, static_cast<char>(code))
                     : std::string{static_cast<char>(0xc0 | code >> 6),
                                   static_cast<char>(0x80 | (code & 63))};
}

// `text` without the bytes that SmolLM2's vocabulary lacks.
std::string WithTokens(std::string text) {
  static const std::string lacking = [] {
    const auto tokens = SmolLm2().Strings("tokenizer.ggml.tokens");
    const std::set<std::string_view> known(tokens.begin(), tokens.end());
    std::string bytes;
    for (int byte = 0; byte < 256; ++byte) {
      if (!known.contains(Written(byte))) bytes += static_cast<char>(byte);
    }
    return bytes;
  }();
  EXPECT_FALSE(lacking.empty());
  std::erase_if(text, [](char c) { return lacking.find(c) != std::string::npos; });
  return text;
}

TEST(ByteBpe, TwentyThousandTextsAsTheLibraryTokenizersHasThem) {
  const auto fixture = ReadFixture("bpe_tokens.json");
  const FixtureTexts texts(fixture);
  const auto texts_of_tokens = SmolLm2().Strings("tokenizer.ggml.tokens");
  ASSERT_EQ(fixture["kinds"].size(), 4u);
  for (const auto& item : fixture["kinds"].items()) {
    const std::string& kind = item.key();
    SCOPED_TRACE(kind);
    const Tokenizer tokenizer = With(kind);
    const auto comes_back = [&](const std::string& text, const Tokens& tokens) {
      std::string decoded;
      for (const int32_t token : tokens) {  // control tokens decode to nothing
        decoded +=
            token < 17 ? texts_of_tokens[static_cast<size_t>(token)] : tokenizer.TokenBytes(token);
      }
      EXPECT_EQ(decoded, WithTokens(kind == "qwen2" ? Compose(text) : text));
    };
    ExpectFixtureTokens(
        item.value(), "crc32", 20000, texts,
        [&](const std::string& text) { return tokenizer.Encode(text); }, comes_back);
  }
}

TEST(ByteBpe, TheFilesOwn) {
  const Tokenizer tokenizer(SmolLm2());
  EXPECT_EQ(tokenizer.vocab(), 49152);
  EXPECT_THAT(tokenizer.Encode("<|im_start|>user\n"), ElementsAre(1, 4093, 198));
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode("<|im_start|>Hello, world 🦊!")),
            "Hello, world 🦊!");
  EXPECT_TRUE(tokenizer.Encode("").empty());
}

TEST(ByteBpe, LongTextsAreQuick) {
  for (const char* kind : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    const Tokenizer tokenizer = With(kind);
    const auto start = std::chrono::steady_clock::now();
    for (const std::string part : {"a", " ", "\n ", "'", "1", "'s", "\u0301"}) {
      std::string text;
      while (text.size() < 100000) text += part;
      EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text + "x")), text + "x");
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    EXPECT_LT(seconds.count(), 60) << kind;  // 1 s in a release build
  }
}

// ---- by hand
std::vector<std::string> PreTokens(PreTokenizer pre_tokenizer, std::string_view text) {
  std::vector<std::string> pre_tokens;
  for (const size_t length : SplitText(pre_tokenizer, text)) {
    pre_tokens.emplace_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  EXPECT_TRUE(text.empty());
  return pre_tokens;
}

TEST(PreTokenizer, ByHand) {
  EXPECT_THAT(PreTokens(PreTokenizer::kGpt2, "I'll  see 12a  \n"),
              ElementsAre("I", "'ll", " ", " see", " 12", "a", "  \n"));
  EXPECT_THAT(PreTokens(PreTokenizer::kGpt2, "I'LL"), ElementsAre("I", "'", "LL"));
  EXPECT_THAT(PreTokens(PreTokenizer::kSmolLm, " 12 x"), ElementsAre(" ", "1", "2", " x"));
  EXPECT_THAT(PreTokens(PreTokenizer::kLlama3, "I'LL 1234(x)\n\n  y"),
              ElementsAre("I", "'LL", " ", "123", "4", "(x", ")\n\n", " ", " y"));
  EXPECT_THAT(PreTokens(PreTokenizer::kQwen2, "a12 \n b"), ElementsAre("a", "1", "2", " \n", " b"));
  EXPECT_TRUE(PreTokens(PreTokenizer::kGpt2, "").empty());
}

struct Vocabulary {
  std::vector<std::string> texts;
  std::vector<std::string> merges = {"a b", "ab c"};
  std::vector<int32_t> types;
  std::string pre = "gpt-2";

  Vocabulary() {
    for (int byte = 0; byte < 256; ++byte) texts.push_back(Written(byte));
    texts.insert(texts.end(), {"ab", "abc", "bc"});
    types.assign(texts.size(), 1);
  }
  std::vector<uint8_t> File() const {
    Writer writer;
    writer.AddString("tokenizer.ggml.model", "gpt2");
    if (!pre.empty()) writer.AddString("tokenizer.ggml.pre", pre);
    writer.AddArray("tokenizer.ggml.tokens", Writer::kString, texts);
    writer.AddArray("tokenizer.ggml.token_type", Writer::kI32, types);
    writer.AddArray("tokenizer.ggml.merges", Writer::kString, merges);
    writer.Add<uint32_t>("tokenizer.ggml.bos_token_id", Writer::kU32, 258);
    return writer.Finish();
  }
  std::string Error() const {
    const std::vector<uint8_t> bytes = File();
    try {
      Tokenizer tokenizer(GgufFile::Parse(bytes, "test.gguf"));
      return "";
    } catch (const BadModel& error) {
      return error.what();
    }
  }
};

TEST(ByteBpe, MergesByRank) {
  const std::vector<uint8_t> bytes = Vocabulary().File();
  const Tokenizer tokenizer(GgufFile::Parse(bytes, "test"));
  EXPECT_THAT(tokenizer.Encode("abcab"), ElementsAre(257, 256));
  EXPECT_THAT(tokenizer.Encode("bc"), ElementsAre('b', 'c'));  // a token without a merge
  for (int byte = 0; byte < 128; ++byte) {
    const std::string text(1, static_cast<char>(byte));
    EXPECT_THAT(tokenizer.Encode(text), ElementsAre(byte));
    EXPECT_EQ(tokenizer.TokenBytes(byte), text);
  }
  EXPECT_THAT(tokenizer.Encode("é"), ElementsAre(0xc3, 0xa9));
  Vocabulary llama;
  llama.pre = "llama-bpe";
  const std::vector<uint8_t> other = llama.File();
  EXPECT_THAT(Tokenizer(GgufFile::Parse(other, "test")).Encode("bc"), ElementsAre(258, 258));
}

TEST(ByteBpe, BytesWithoutATokenAreLeftOut) {
  Vocabulary v;
  v.texts['q'] = "other";
  const std::vector<uint8_t> bytes = v.File();
  const Tokenizer tokenizer(GgufFile::Parse(bytes, "test"));
  EXPECT_THAT(tokenizer.Encode("qaqbq"), ElementsAre(256));
  EXPECT_TRUE(tokenizer.Encode("q").empty());
}

TEST(ByteBpe, RefusesContradictions) {
  Vocabulary v;
  EXPECT_EQ(v.Error(), "");
  v.pre = "klingon";
  EXPECT_THAT(v.Error(), HasSubstr("its pre-tokenizer is \"klingon\"; known are gpt-2"));
  v.pre = "";
  EXPECT_THAT(v.Error(), HasSubstr("no metadata \"tokenizer.ggml.pre\""));
  v = {};
  v.merges.push_back("ab");
  EXPECT_THAT(v.Error(), HasSubstr("merge 2, \"ab\", is not two tokens"));
  v.merges.back() = "ab x";
  EXPECT_THAT(v.Error(), HasSubstr("merge 2, \"ab x\", names or makes a token"));
  v = {};
  v.types[5] = 6;
  EXPECT_THAT(v.Error(), HasSubstr("token 5 is a byte token"));
  v = {};
  v.types[5] = 9;
  EXPECT_THAT(v.Error(), HasSubstr("token 5 is of type 9"));
}

}  // namespace
}  // namespace riffle::engine
