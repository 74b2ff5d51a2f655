// SentencePiece's unigram model against the library tokenizers (tests/data/unigram_tokens.json, by
// make_unigram_fixture.py), by hand, against all ways to write a text, and with hostile
// vocabularies.
#include "engine/tokenizer/unigram.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>

#include "engine/default_model.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "testing/gguf_writer.h"
#include "testing/rng.h"
#include "testing/targets.h"
#include "tests/engine/token_fixture.h"

namespace riffle::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Writer = riffle::testing::GgufWriter;
using Tokens = std::vector<int32_t>;

struct Vocabulary {
  std::vector<std::string> texts = {"<unk>"};
  std::vector<float> scores = {0};
  std::vector<int32_t> types = {2};
  bool space_prefix = false;
  bool removes_spaces = false;
  std::function<void(Writer&)> more = [](Writer&) {};

  void Add(const std::string& text, float score, int32_t type = 1) {
    texts.push_back(text);
    scores.push_back(score);
    types.push_back(type);
  }
  void AddBytes() {
    for (int byte = 0; byte < 256; ++byte) {
      char text[8];
      std::snprintf(text, sizeof(text), "<0x%02X>", static_cast<unsigned>(byte));
      Add(text, 0, 6);
    }
  }
  std::vector<uint8_t> File() const {
    Writer writer;
    writer.AddString("tokenizer.ggml.model", "t5");
    writer.AddArray("tokenizer.ggml.tokens", Writer::kString, texts);
    writer.AddArray("tokenizer.ggml.scores", Writer::kF32, scores);
    writer.AddArray("tokenizer.ggml.token_type", Writer::kI32, types);
    const auto flag = [&](const char* name, bool on) {
      writer.Add<uint8_t>(std::string("tokenizer.ggml.") + name, Writer::kBool, on);
    };
    flag("add_eos_token", false);
    flag("add_space_prefix", space_prefix);
    flag("remove_extra_whitespaces", removes_spaces);
    more(writer);
    if (types[0] == 2) writer.Add<int32_t>("tokenizer.ggml.unknown_token_id", Writer::kI32, 0);
    return writer.Finish();
  }
  Tokenizer Make() const {
    const std::vector<uint8_t> bytes = File();
    return Tokenizer(GgufFile::Parse(bytes, "test.gguf"));
  }
  std::string Error() const {
    try {
      Make();
      return "";
    } catch (const BadModel& error) {
      return error.what();
    }
  }
};

// As make_unigram_fixture.py makes it.
Vocabulary FixtureVocabulary(const std::string& kind) {
  const GgufFile file = GgufFile::Open(ChatModelPath());
  const Tokenizer smollm2(file);
  const auto types = file.Integers("tokenizer.ggml.token_type");
  Vocabulary vocabulary;
  for (size_t i = 0; i < types.size(); ++i) {
    const std::string text(smollm2.TokenBytes(static_cast<int32_t>(i)));
    if (types[i] != 1 || FindInvalidUtf8(text) != std::string::npos) continue;
    const auto index = static_cast<float>(vocabulary.texts.size() * 7919 % 4093);
    vocabulary.Add(WithEscapedSpaces(text), -(1 + index) / 256);
  }
  if (kind == "bytes") vocabulary.AddBytes();
  vocabulary.space_prefix = vocabulary.removes_spaces = kind == "trimmed";
  return vocabulary;
}

TEST(Unigram, TwentyThousandTextsAsTheLibraryTokenizersHasThem) {
  const FixtureTexts texts(ReadFixture("bpe_tokens.json"));
  const auto fixture = ReadFixture("unigram_tokens.json");
  ASSERT_EQ(fixture["kinds"].size(), 3u);
  for (const auto& item : fixture["kinds"].items()) {
    const std::string& kind = item.key();
    SCOPED_TRACE(kind);
    const Vocabulary vocabulary = FixtureVocabulary(kind);
    EXPECT_EQ(vocabulary.texts.size() - (kind == "bytes" ? 256 : 0),
              fixture["vocabulary"].get<size_t>());
    const Tokenizer tokenizer = vocabulary.Make();
    ExpectFixtureTokens(
        item.value(), "crc16", 20000, texts,
        [&](const std::string& text) { return tokenizer.Encode(text); },
        [&](const std::string& text, const Tokens& tokens) {
          if (kind == "bytes") {  // nothing is lost
            EXPECT_EQ(tokenizer.Decode(tokens), UnescapedBytes(text, TokenType::kNormal));
          }
        });
  }
}

// ---- by hand
TEST(Unigram, TheGreatestSumWins) {
  Vocabulary v;
  v.Add("a", -1);     // 1
  v.Add("b", -1);     // 2
  v.Add("ab", -1.5);  // 3
  v.Add("ba", -2.5);  // 4
  v.Add("aba", -3);   // 5
  const Tokenizer tokenizer = v.Make();
  EXPECT_THAT(tokenizer.Encode("ab"), ElementsAre(3));
  EXPECT_THAT(tokenizer.Encode("ba"), ElementsAre(2, 1));
  EXPECT_THAT(tokenizer.Encode("aba"), ElementsAre(3, 1));  // -2.5, better than -3
  EXPECT_THAT(tokenizer.Encode("axxb"), ElementsAre(1, 0, 2));
  EXPECT_TRUE(tokenizer.Encode("").empty());
  v.scores[5] = -2.5;  // as good: the longer last token
  EXPECT_THAT(v.Make().Encode("aba"), ElementsAre(5));
}

TEST(Unigram, BytesAndSpaces) {
  Vocabulary v;
  v.Add("a", -1);
  v.Add("\u2581", -1);
  v.Add("\u2581a", -1);
  v.AddBytes();
  EXPECT_THAT(v.Make().Encode("a\u00e9"), ElementsAre(1, 4 + 0xc3, 4 + 0xa9));
  EXPECT_THAT(v.Make().Encode(" a  a "), ElementsAre(3, 2, 3, 2));
  v.space_prefix = true;
  EXPECT_THAT(v.Make().Encode("a"), ElementsAre(3));
  v.removes_spaces = true;
  EXPECT_THAT(v.Make().Encode("  a   a "), ElementsAre(3, 3));
  EXPECT_TRUE(v.Make().Encode("   ").empty());
  EXPECT_EQ(v.Make().Decode(v.Make().Encode("  a   a ")), "a a");
}

// Small vocabularies and texts: the best of all ways.
TEST(Unigram, NoOtherWayIsBetter) {
  for (uint64_t number = 0; number < 2000; ++number) {
    test::Rng rng(number);
    Vocabulary v;
    const auto text = [&](int64_t max) {
      std::string made;
      for (int64_t i = rng.Below(max) + 1; i > 0; --i) {
        made +=
            rng.Below(8) == 0 ? "\u00e9" : std::string(1, static_cast<char>('a' + rng.Below(2)));
      }
      return made;
    };
    for (int64_t i = rng.Below(12); i > 0; --i) {
      const std::string token = text(4);
      if (std::find(v.texts.begin(), v.texts.end(), token) == v.texts.end()) {
        v.Add(token, -static_cast<float>(rng.Below(64)) / 8);
      }
    }
    const auto bytes = static_cast<int32_t>(v.texts.size());
    v.AddBytes();
    const Tokenizer tokenizer = v.Make();
    const std::string input = text(9);
    const double unknown = *std::min_element(v.scores.begin(), v.scores.end()) - 10.0;
    // The best sum of input from each place on, by trying every token.
    std::vector<double> best(input.size() + 1, -std::numeric_limits<double>::infinity());
    best[input.size()] = 0;
    for (size_t at = input.size(); at-- > 0;) {
      const std::string_view rest = std::string_view(input).substr(at);
      const Utf8Character first = FirstCharacter(rest);
      if (first.kind != Utf8Character::kValid) continue;
      bool single = false;
      for (size_t token = 1; token < static_cast<size_t>(bytes); ++token) {
        if (!rest.starts_with(v.texts[token])) continue;
        single = single || v.texts[token].size() == first.length;
        best[at] = std::max(best[at], v.scores[token] + best[at + v.texts[token].size()]);
      }
      if (!single) best[at] = std::max(best[at], unknown + best[at + first.length]);
    }
    double sum = 0;
    size_t at = 0;
    for (const int32_t token : tokenizer.Encode(input)) {
      if (token < bytes) {
        EXPECT_TRUE(std::string_view(input).substr(at).starts_with(v.texts[token]));
        sum += v.scores[static_cast<size_t>(token)];
        at += v.texts[static_cast<size_t>(token)].size();
      } else {  // a byte, the first of an unknown character or another one
        EXPECT_EQ(token - bytes, static_cast<uint8_t>(input[at]));
        sum += (input[at] & 0xc0) == 0x80 ? 0 : unknown;
        ++at;
      }
    }
    EXPECT_EQ(at, input.size());
    EXPECT_NEAR(sum, best[0], 1e-9) << input;
  }
}

// The most memory that the process has had so far.
int64_t PeakBytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

TEST(Unigram, HostileVocabulariesAreQuickAndSmall) {
  Vocabulary v;
  for (int i = 1; i <= 400; ++i) v.Add(std::string(static_cast<size_t>(i), 'a'), -1);
  v.Add(std::string(100000, 'b'), -1);
  v.Add("b", -2);
  const Tokenizer tokenizer = v.Make();
  const auto start = std::chrono::steady_clock::now();
  const int64_t before = PeakBytes();
  const std::string many_a(100001, 'a'), many_b(99999, 'b');
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(many_a + many_b)), many_a + many_b);
  EXPECT_EQ(tokenizer.Encode(many_b + "b").size(), 1u);
  if (!test::kSlow) {  // 40 million tokens are found, none of which is kept
    EXPECT_LT(PeakBytes() - before, 100 << 20);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 60);  // 0.5 s in a release build; in the square of the length minutes
}

TEST(Unigram, RefusesContradictions) {
  Vocabulary v;
  v.Add("a", -1);
  EXPECT_EQ(v.Error(), "");
  v.more = [](Writer& writer) {
    writer.AddArray<uint8_t>("tokenizer.ggml.precompiled_charsmap", Writer::kU8, {1, 2, 3});
  };
  EXPECT_THAT(v.Error(), HasSubstr("precompiled_charsmap has 3 bytes"));
  v = {};
  v.scores.push_back(1);
  EXPECT_THAT(v.Error(), HasSubstr("1 tokens, but 2 scores"));
  v = {};
  v.Add("a", std::numeric_limits<float>::infinity());
  EXPECT_THAT(v.Error(), HasSubstr("the score of token 1 is not a finite number"));
  v = {};
  v.types[0] = 1;
  EXPECT_THAT(v.Error(), HasSubstr("no metadata \"tokenizer.ggml.unknown_token_id\""));
  v = {};
  v.Add("a", 0, 6);
  EXPECT_THAT(v.Error(), HasSubstr("token 1 is a byte, but its text is \"a\""));
}

}  // namespace
}  // namespace riffle::engine
