// The tokenizer with three kinds of vocabularies: the model's own, compared with SentencePiece
// (make_tokenizer_fixture.py writes tests/data/gemma3_tokens.json), one of a few tokens made by
// hand, and contradictory ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "engine/default_model.h"
#include "engine/gguf/gguf.h"
#include "engine/tokenizer/token_matcher.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "testing/gguf_writer.h"
#include "testing/paths.h"

namespace riffle::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Writer = riffle::testing::GgufWriter;
using Tokens = std::vector<int32_t>;

// ---- the model's vocabulary; scripts/model.sh fetches it, scripts/ctest.sh calls that
const Tokenizer& Gemma() {
  static const Tokenizer tokenizer(GgufFile::Open(DefaultModelPath()));
  return tokenizer;
}

std::string WithoutControls(const Tokens& tokens) {
  std::string text;
  for (const int32_t token : tokens) text += Gemma().TokenBytes(token);
  return text;
}

TEST(GemmaTokenizer, AgreesWithSentencePiece) {
  std::ifstream file(std::string(test::kTestData) + "/gemma3_tokens.json");
  const auto cases = nlohmann::json::parse(file);
  ASSERT_GT(cases.size(), 400u);
  for (const auto& entry : cases) {
    const auto text = entry["text"].get<std::string>();
    const auto expected = entry["tokens"].get<Tokens>();
    const Tokens tokens = Gemma().Encode(text);
    EXPECT_EQ(tokens, expected) << ::testing::PrintToString(text);
    EXPECT_EQ(Gemma().Decode(tokens), WithoutControls(expected));
  }
}

TEST(GemmaTokenizer, RoundTrip) {
  std::mt19937 rng(3);
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (int c = 0; c < 40; ++c) {
      const uint32_t limits[] = {0x80, 0x80, 0x250, 0x3000, 0x10000, 0x110000};
      const auto code = static_cast<uint32_t>(rng() % limits[rng() % 6]);
      if ((code >= 0xD800 && code < 0xE000) || code == 0x2581) continue;
      if (code < 0x80) {
        text += static_cast<char>(code);
      } else if (code < 0x800) {
        text += {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
      } else if (code < 0x10000) {
        text += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63)),
                 static_cast<char>(0x80 | (code & 63))};
      } else {
        text += {static_cast<char>(0xF0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 63)),
                 static_cast<char>(0x80 | (code >> 6 & 63)), static_cast<char>(0x80 | (code & 63))};
      }
    }
    ASSERT_EQ(FindInvalidUtf8(text), std::string::npos);
    const Tokens tokens = Gemma().Encode(text);
    EXPECT_EQ(Gemma().Decode(tokens), text);
    StreamDecoder decoder(Gemma());
    std::string streamed;
    for (const int32_t token : tokens) {
      const std::string part = decoder.Push(token);
      EXPECT_EQ(FindInvalidUtf8(part), std::string::npos);
      streamed += part;
    }
    EXPECT_EQ(streamed + decoder.Finish(), text);
  }
}

TEST(GemmaTokenizer, Vocabulary) { EXPECT_EQ(Gemma().vocab(), 262144); }

TEST(GemmaTokenizer, ALongTextIsQuick) {  // quadratic merging would take minutes
  const Tokens tokens = Gemma().Encode(std::string(1000000, 'a'));
  EXPECT_GT(tokens.size(), 10000u);
}

// ---- a vocabulary by hand
struct Vocabulary {
  std::vector<std::string> texts = {"<unk>", "<s>", "</s>", "<b>", "<bb>",   "\u2581\u2581", "a",
                                    "b",     "ab",  "ba",   "bab", "\u2581", "\u2581a"};
  std::vector<float> scores = {0, 0, 0, 0, 0, 0, -9, -9, -2, -1, -3, -9, -2};
  std::vector<int32_t> types = {2, 3, 3, 4, 4, 4, 1, 1, 1, 1, 1, 1, 1};
  std::string model = "llama";
  int prefix = 0;
  uint32_t bos = 1;

  Vocabulary& Add(const std::string& text, float score, int32_t type) {
    texts.push_back(text);
    scores.push_back(score);
    types.push_back(type);
    return *this;
  }
  Tokenizer Make() const {
    Writer writer;
    writer.AddString("tokenizer.ggml.model", model);
    writer.AddArray("tokenizer.ggml.tokens", Writer::kString, texts);
    writer.AddArray("tokenizer.ggml.scores", Writer::kF32, scores);
    writer.AddArray("tokenizer.ggml.token_type", Writer::kI32, types);
    writer.Add<uint32_t>("tokenizer.ggml.bos_token_id", Writer::kU32, bos);
    writer.Add<uint32_t>("tokenizer.ggml.eos_token_id", Writer::kU32, 2);
    writer.Add<uint32_t>("tokenizer.ggml.unknown_token_id", Writer::kU32, 0);
    writer.Add<uint8_t>("tokenizer.ggml.add_space_prefix", Writer::kBool,
                        static_cast<uint8_t>(prefix));
    const auto bytes = writer.Finish();
    return Tokenizer(GgufFile::Parse(bytes, "test.gguf"));
  }
  std::string Error() const {
    try {
      Make();
    } catch (const BadModel& error) {
      return error.what();
    }
    return "no error";
  }
};

TEST(Tokenizer, MergesTheBestPairFirstThenTheLeftmost) {
  const Tokenizer tokenizer = Vocabulary().Make();
  EXPECT_THAT(tokenizer.Encode(""), ElementsAre(1));
  EXPECT_THAT(tokenizer.Encode("ab"), ElementsAre(1, 8));
  EXPECT_THAT(tokenizer.Encode("aba"), ElementsAre(1, 6, 9));   // "ba" before "ab"
  EXPECT_THAT(tokenizer.Encode("baba"), ElementsAre(1, 9, 9));  // and so never "bab"
  EXPECT_THAT(tokenizer.Encode("bab"), ElementsAre(1, 10));     // "ba", then "bab"
  EXPECT_THAT(tokenizer.Encode(" ab"), ElementsAre(1, 12, 7));  // equal scores: the leftmost
  EXPECT_THAT(tokenizer.Encode(" aab"), ElementsAre(1, 12, 8));
}

TEST(Tokenizer, CutsAtTheLongestSpecialToken) {
  const Tokenizer tokenizer = Vocabulary().Make();
  EXPECT_THAT(tokenizer.Encode("a<b>b"), ElementsAre(1, 6, 3, 7));
  EXPECT_THAT(tokenizer.Encode("<b><bb>"), ElementsAre(1, 3, 4));
  EXPECT_THAT(tokenizer.Encode("</s>"), ElementsAre(1, 2));
  EXPECT_THAT(tokenizer.Encode("   "), ElementsAre(1, 5, 11));
  EXPECT_EQ(tokenizer.Decode({1, 6, 3, 7, 2, 5}), "a<b>b  ");
}

// A plain part keeps the user-defined token of a text that a control token has too, and a shorter
// one where a control token would reach into it.
TEST(Tokenizer, PlainPartsHaveNoControlTokens) {
  constexpr int32_t kControl = 3, kUserDefined = 4;
  const Tokenizer tokenizer = Vocabulary()
                                  .Add("aa", 0, kControl)       // 13
                                  .Add("aa", 0, kUserDefined)   // 14
                                  .Add("abb", 0, kControl)      // 15
                                  .Add("bba", 0, kUserDefined)  // 16
                                  .Make();
  const auto encode = [&](const std::vector<TextPart>& parts) { return tokenizer.Encode(parts); };
  EXPECT_THAT(encode({{"aa", false}}), ElementsAre(1, 13));
  EXPECT_THAT(encode({{"aa", true}}), ElementsAre(1, 14));
  EXPECT_THAT(encode({{"a", false}, {"a", true}}), ElementsAre(1, 14));
  EXPECT_THAT(encode({{"abb", false}, {"abb", true}}), ElementsAre(1, 15, 8, 7));
  EXPECT_THAT(encode({{"ab", false}, {"b", true}, {"abb", false}}), ElementsAre(1, 6, 16, 7, 7));
}

// Find takes the longest token at each place, as a search that tries all of them does.
TEST(Tokenizer, SpecialTokensAreThoseOfASearchByTrial) {
  std::mt19937 random(11);
  const auto text_of = [&](size_t length, uint32_t letters) {
    std::string text;
    while (text.size() < length) text += static_cast<char>('a' + random() % letters);
    return text;
  };
  for (int round = 0; round < 300; ++round) {
    const uint32_t letters = 1 + static_cast<uint32_t>(random() % 3);
    TokenMatcher special;
    std::map<std::string, int32_t> token_of;
    for (int32_t token = 0; token < 12; ++token) {
      const std::string text = text_of(random() % 7, letters);
      special.Add(text, token);
      if (!text.empty()) token_of.emplace(text, token);
    }
    special.Finish();
    const std::string text = text_of(60, letters);
    std::vector<std::array<size_t, 3>> wanted, got;
    for (size_t at = 0; at < text.size();) {
      size_t length = std::min<size_t>(7, text.size() - at);
      while (length > 0 && !token_of.contains(text.substr(at, length))) --length;
      if (length > 0) {
        const int32_t token = token_of.at(text.substr(at, length));
        wanted.push_back({at, length, static_cast<size_t>(token)});
      }
      at += std::max<size_t>(length, 1);
    }
    for (const TokenMatcher::Match& match : special.Find(text)) {
      got.push_back({match.start, match.length, static_cast<size_t>(match.token)});
    }
    EXPECT_EQ(got, wanted) << text;
  }
}

// The text at each place begins like all 4000 tokens: trying one after the other would take hours.
TEST(Tokenizer, ManySpecialTokensOfOneBeginningAreQuick) {
  Vocabulary vocabulary;
  for (size_t length = 1; length <= 4000; ++length) {
    vocabulary.Add(std::string(length, 'c') + "d", 0, 4);
  }
  const Tokenizer tokenizer = vocabulary.Make();
  const auto start = std::chrono::steady_clock::now();
  const Tokens tokens = tokenizer.Encode(std::string(1000000, 'c') + "dab");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 20);  // 0.1 s in a release build
  ASSERT_GT(tokens.size(), 2u);
  EXPECT_EQ(tokens.back(), 8);
  EXPECT_EQ(tokens[tokens.size() - 2], 13 + 3999);
}

TEST(Tokenizer, UnknownCharactersAndBytes) {
  EXPECT_THAT(Vocabulary().Make().Encode("aé"), ElementsAre(1, 6, 0));
  const Tokenizer tokenizer = Vocabulary().Add("<0xC3>", 0, 6).Add("<0xA9>", 0, 6).Make();
  EXPECT_THAT(tokenizer.Encode("aéà"), ElementsAre(1, 6, 13, 14, 0));
  EXPECT_EQ(tokenizer.Decode({13, 14}), "é");
  EXPECT_EQ(tokenizer.Decode({14, 13, 6, 13}), "\uFFFD\uFFFDa\uFFFD");
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.Push(13), "");
  EXPECT_EQ(decoder.Push(14), "é");
  EXPECT_EQ(decoder.Push(13), "");
  EXPECT_EQ(decoder.Push(6), "\uFFFDa");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(Tokenizer, SpacePrefix) {
  Vocabulary vocabulary;
  vocabulary.prefix = 1;
  const Tokenizer tokenizer = vocabulary.Make();
  EXPECT_THAT(tokenizer.Encode("a"), ElementsAre(1, 12));
  EXPECT_EQ(tokenizer.Decode({1, 12}), "a");
  EXPECT_THAT(tokenizer.Encode(""), ElementsAre(1));
}

TEST(Tokenizer, RefusesContradictions) {
  Vocabulary v;
  v.model = "bert";
  EXPECT_THAT(v.Error(), HasSubstr("test.gguf: its tokenizer is \"bert\"; \"llama\""));
  v = {};
  v.scores.pop_back();
  EXPECT_THAT(v.Error(), HasSubstr("13 tokens, but 12 scores"));
  v = {};
  v.types[3] = 7;
  EXPECT_THAT(v.Error(), HasSubstr("token 3 is of type 7"));
  v = {};
  v.scores[4] = NAN;
  EXPECT_THAT(v.Error(), HasSubstr("score of token 4"));
  v = {};
  v.bos = 13;
  EXPECT_THAT(v.Error(), HasSubstr("bos_token_id\" is 13, but there are 13 tokens"));
  for (const char* text : {"<0xZ1>", "<0x1>", "0x11", "<0x1g>", "<0x11]"}) {
    EXPECT_THAT(Vocabulary().Add(text, 0, 6).Error(), HasSubstr("token 13 is a byte, but"));
  }
  v = {};
  v.texts = {}, v.scores = {}, v.types = {};
  EXPECT_THAT(v.Error(), HasSubstr("0 tokens"));
  EXPECT_THROW(Vocabulary().Make().Decode({13}), std::out_of_range);
  EXPECT_THROW(Vocabulary().Make().Decode({-1}), std::out_of_range);
}

TEST(Tokenizer, RefusesWhatIsNotUtf8) {
  const Tokenizer tokenizer = Vocabulary().Make();
  const std::pair<std::string, size_t> cases[] = {{"a\x80", 1},
                                                  {"\xff", 0},
                                                  {"ab\xc3", 2},
                                                  {"\xc0\xaf", 0},
                                                  {"\xe0\x80\x80", 0},
                                                  {"\xed\xa0\x80", 0},
                                                  {"\xf4\x90\x80\x80", 0},
                                                  {"\xf0\x9f\xa6", 0},
                                                  {"\xf8\x88\x80\x80", 0},
                                                  {"\xc3\x28", 0}};
  for (const auto& [text, at] : cases) {
    EXPECT_EQ(FindInvalidUtf8(text), at);
    EXPECT_THROW(tokenizer.Encode(text), BadText);
  }
  EXPECT_EQ(FindInvalidUtf8("\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"),
            std::string::npos);
}

}  // namespace
}  // namespace riffle::engine
