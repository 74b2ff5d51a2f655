// Vocabularies that normalize texts by a table: as SentencePiece does, and whatever the table
// holds.
#include "engine/tokenizer/charsmap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/tokenizer/tokenizer.h"
#include "testing/gguf_writer.h"
#include "tests/engine/token_fixture.h"

namespace riffle::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Writer = riffle::testing::GgufWriter;
using Tokens = std::vector<int32_t>;

// ---- beside SentencePiece
std::vector<uint8_t> Base64(const std::string& text) {
  static const std::string kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<uint8_t> bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string::npos) break;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if ((count += 6) >= 8) bytes.push_back(static_cast<uint8_t>(bits >> (count -= 8)));
  }
  return bytes;
}

Tokenizer FixtureTokenizer(const nlohmann::json& kind, const std::vector<uint8_t>& charsmap) {
  Writer writer;
  const std::string prefix = "tokenizer.ggml.";
  writer.AddString(prefix + "model", kind["model"].get<std::string>());
  writer.AddArray(prefix + "tokens", Writer::kString,
                  kind["texts"].get<std::vector<std::string>>());
  writer.AddArray(prefix + "scores", Writer::kF32, kind["scores"].get<std::vector<float>>());
  writer.AddArray(prefix + "token_type", Writer::kI32, kind["types"].get<std::vector<int32_t>>());
  writer.AddArray(prefix + "precompiled_charsmap", Writer::kU8, charsmap);
  for (const char* name : {"add_space_prefix", "remove_extra_whitespaces"}) {
    writer.Add<uint8_t>(prefix + name, Writer::kBool, kind[name].get<bool>());
  }
  for (const char* name : {"add_bos_token", "add_eos_token"}) {
    writer.Add<uint8_t>(prefix + name, Writer::kBool, 0);
  }
  writer.Add<int32_t>(prefix + "unknown_token_id", Writer::kI32, 0);
  const std::vector<uint8_t> bytes = writer.Finish();
  return Tokenizer(GgufFile::Parse(bytes, "fixture.gguf"));
}

TEST(Charsmap, FiveThousandTextsAsSentencePieceHasThem) {
  const auto fixture = ReadFixture("charsmap_tokens.json");
  const FixtureTexts texts(fixture);
  const std::vector<uint8_t> charsmap = Base64(fixture["charsmap"].get<std::string>());
  ASSERT_EQ(fixture["kinds"].size(), 3u);
  for (const auto& item : fixture["kinds"].items()) {
    SCOPED_TRACE(item.key());
    const Tokenizer tokenizer = FixtureTokenizer(item.value(), charsmap);
    ExpectFixtureTokens(item.value(), "crc16", 5000, texts,
                        [&](const std::string& text) { return tokenizer.Encode(text); });
  }
}

// ---- by hand
// A table whose state number k has its units at 256 k + byte.
class Table {
 public:
  Table() : units_(256, kUnused) { units_[0] = Offset(0, 256); }

  // Of a state, by a byte to another one; `text` >= 0: a sequence ends there, and is written as
  // what begins at this place of the texts.
  Table& Way(size_t from, char byte, size_t to, int64_t text = -1) {
    const size_t unit = 256 * from + static_cast<uint8_t>(byte);
    units_.resize(std::max({units_.size(), 256 * (from + 1), 256 * (to + 1)}), kUnused);
    units_[unit] = static_cast<uint8_t>(byte) | Offset(unit, 256 * to);
    if (text >= 0) {
      units_[unit] |= 0x100;
      units_[256 * to] = 0x80000000u | static_cast<uint32_t>(text);
    }
    return *this;
  }
  // A sequence in states of its own.
  Table& Sequence(const std::string& bytes, int64_t text) {
    size_t state = 1;
    for (size_t i = 0; i < bytes.size(); ++i) {
      const size_t unit = 256 * state + static_cast<uint8_t>(bytes[i]);
      const bool last = i + 1 == bytes.size();
      if (states_.contains(unit)) {
        const size_t next = states_.at(unit);
        if (last) Way(state, bytes[i], next, text);
        state = next;
      } else {
        Way(state, bytes[i], ++last_state_, last ? text : -1);
        states_[unit] = last_state_;
        state = last_state_;
      }
    }
    return *this;
  }
  std::vector<uint32_t>& units() { return units_; }
  std::string texts;

  std::vector<uint8_t> Bytes() const {
    std::string bytes = Writer::Raw(static_cast<uint32_t>(4 * units_.size()));
    for (const uint32_t unit : units_) bytes += Writer::Raw(unit);
    bytes += texts;
    return {bytes.begin(), bytes.end()};
  }

 private:
  static constexpr uint32_t kUnused = 0x80000000;  // is entered by no byte

  static uint32_t Offset(size_t unit, size_t state) {
    return static_cast<uint32_t>(unit ^ state) << 10;
  }

  std::vector<uint32_t> units_;
  std::map<size_t, size_t> states_;  // of a unit that was made by Sequence
  size_t last_state_ = 1;
};

template <typename T>
std::vector<uint8_t> FileOf(const std::vector<T>& charsmap, uint32_t type = Writer::kU8) {
  Writer writer;
  writer.AddArray<T>("tokenizer.ggml.precompiled_charsmap", type, charsmap);
  return writer.Finish();
}

template <typename T>
std::string ErrorOf(const std::vector<T>& charsmap, uint32_t type = Writer::kU8) {
  const std::vector<uint8_t> bytes = FileOf(charsmap, type);
  try {
    Charsmap::Of(GgufFile::Parse(bytes, "test"));
  } catch (const BadModel& error) {
    return error.what();
  }
  return "";
}
std::string ErrorOf(const Table& table) { return ErrorOf(table.Bytes()); }

std::string Normalize(const Table& table, const std::string& text, bool prefix = false,
                      bool removes = false) {
  const std::vector<uint8_t> bytes = FileOf(table.Bytes());
  return Charsmap::Of(GgufFile::Parse(bytes, "test"))->Normalize(text, prefix, removes);
}

TEST(Charsmap, TheLongestSequenceAtEveryPlace) {
  Table table;
  table.texts = std::string("x\0y \0\0\u00fc\0", 9);
  table.Sequence("a", 0).Sequence("abc", 2).Sequence("\u00df", 5).Sequence("e", 6);
  table.Sequence("_", 3);  // " ": the end of another text
  EXPECT_EQ(Normalize(table, "a"), "x");
  EXPECT_EQ(Normalize(table, "ab"), "xb");
  EXPECT_EQ(Normalize(table, "abcab"), "y\u2581xb");
  EXPECT_EQ(Normalize(table, "bca\u00df\u00e9e"), "bcx\u00e9\u00fc");
  EXPECT_EQ(Normalize(table, "bca\u00df", true), "\u2581bcx");
  EXPECT_EQ(Normalize(table, "", true), "");
  // Spaces that the table writes are spaces.
  EXPECT_EQ(Normalize(table, "__b__abc_b _", true, true), "\u2581b\u2581y\u2581b");
  EXPECT_EQ(Normalize(table, "__b__abc_b _", false, false),
            "\u2581\u2581b\u2581\u2581y\u2581\u2581b\u2581\u2581");
  EXPECT_EQ(Normalize(table, " _ ", true, true), "");
  EXPECT_EQ(Normalize(table, "\u00df", true, true), "");
}

TEST(Charsmap, ASequenceThatEndsWithinACharacter) {
  Table table;
  table.texts = std::string("x\0", 2);
  table.Sequence("\xc3", 0);
  EXPECT_EQ(Normalize(table, "\u00e9a"), "x\ufffda");
}

TEST(Charsmap, NoTableOrAnEmptyOne) {
  const std::vector<uint8_t> without = Writer().Finish();
  EXPECT_FALSE(Charsmap::Of(GgufFile::Parse(without, "test")));
  const std::vector<uint8_t> empty = FileOf<uint8_t>({});
  EXPECT_FALSE(Charsmap::Of(GgufFile::Parse(empty, "test")));
}

// ---- tables that no SentencePiece makes
TEST(Charsmap, TablesThatCannotBeUsedAreRefused) {
  const std::string key = "tokenizer.ggml.precompiled_charsmap ";
  EXPECT_EQ(ErrorOf<uint8_t>({1, 2, 3}),
            "test: " + key + "has 3 bytes, of which 0 are to be a trie");
  EXPECT_THAT(ErrorOf<uint8_t>({8, 0, 0, 0, 1, 2, 3, 4}), HasSubstr("8 bytes, of which 8"));
  EXPECT_THAT(ErrorOf<uint8_t>({2, 0, 0, 0, 1, 2, 3, 4}), HasSubstr("of which 2"));
  EXPECT_THAT(ErrorOf<int32_t>({4, 0, 0, 0, 1, 256}, Writer::kI32),
              HasSubstr("has 256, which is no byte"));
  Table good;
  good.texts = std::string("x\0", 2);
  good.Sequence("a", 0).Sequence("ab", 1).Sequence(std::string(64, 'c'), 0);
  EXPECT_EQ(ErrorOf(good), "");
  const std::vector<uint8_t> bytes = good.Bytes();
  EXPECT_EQ(ErrorOf(std::vector<int8_t>(bytes.begin(), bytes.end()), Writer::kI8), "");

  Table table = good;
  table.texts = "x";
  EXPECT_THAT(ErrorOf(table), HasSubstr("its texts are not UTF-8 that ends with a zero byte"));
  table.texts = "";
  EXPECT_THAT(ErrorOf(table), HasSubstr("its texts are not UTF-8"));
  table.texts = std::string("\xff\0", 2);
  EXPECT_THAT(ErrorOf(table), HasSubstr("its texts are not UTF-8"));
  table.texts = std::string("\u00e9\0", 3);  // "ab" begins within the character
  EXPECT_THAT(ErrorOf(table), HasSubstr("a sequence leads to no text"));
  table = good;
  table.Sequence("b", 2);
  EXPECT_THAT(ErrorOf(table), HasSubstr("a sequence leads to no text"));
  table = good;
  table.Sequence("b", 0x7fffffff);
  EXPECT_THAT(ErrorOf(table), HasSubstr("a sequence leads to no text"));
  table = good;
  table.units()[256 + 'b'] = 'b' | 0x100 | 0x1fffffu << 10;  // a state behind the last unit
  EXPECT_THAT(ErrorOf(table), HasSubstr("a sequence leads to no text"));
  table = good;
  table.texts = std::string(256, 'x') + std::string(1, '\0');
  EXPECT_EQ(ErrorOf(table), "");
  table.texts.insert(0, "x");
  EXPECT_THAT(ErrorOf(table), HasSubstr("a text of more than 256 bytes"));
  table = good;
  table.Sequence(std::string(65, 'd'), 0);
  EXPECT_THAT(ErrorOf(table), HasSubstr("a sequence of more than 64 bytes"));
  table = good;
  table.Way(1, 'r', 200).Way(200, 's', 201).Way(201, 't', 200);
  EXPECT_THAT(ErrorOf(table), HasSubstr("its trie has a circle"));
  table.Way(201, 't', 1);
  EXPECT_THAT(ErrorOf(table), HasSubstr("its trie has a circle"));
}

// States that many ways lead to: 2^60 sequences, and a text that follows all but the last of each.
TEST(Charsmap, HostileTablesAndTextsAreQuick) {
  Table table;
  table.texts = std::string(255, 'x') + std::string(1, '\0');
  for (size_t state = 1; state < 61; ++state)
    table.Way(state, 'a', state + 1).Way(state, 'b', state + 1);
  table.Way(61, 'c', 62, 0);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(ErrorOf(table), "");
  std::string text;
  for (int i = 0; i < 300000; ++i) text += i % 3 == 0 ? 'b' : 'a';
  EXPECT_EQ(Normalize(table, text), text);
  // The longest text for every byte.
  Table wide;
  wide.texts = table.texts;
  wide.Sequence("a", 0);
  EXPECT_EQ(Normalize(wide, std::string(100000, 'a')).size(), 25500000u);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 60);  // 0.2 s in a release build
}

// A user-defined token and a control token are found in the text as it was written.
TEST(Charsmap, SpecialTokensAreNotNormalized) {
  Table table;
  table.texts = std::string("b\0", 2);
  table.Sequence("a", 0);
  Writer writer;
  const std::string prefix = "tokenizer.ggml.";
  writer.AddString(prefix + "model", "t5");
  writer.AddArray<std::string>(prefix + "tokens", Writer::kString,
                               {"<unk>", "</a>", "<a>", "b", "\u2581"});
  writer.AddArray<float>(prefix + "scores", Writer::kF32, {0, 0, 0, -1, -2});
  writer.AddArray<int32_t>(prefix + "token_type", Writer::kI32, {2, 3, 4, 1, 1});
  writer.AddArray(prefix + "precompiled_charsmap", Writer::kU8, table.Bytes());
  writer.Add<uint8_t>(prefix + "add_space_prefix", Writer::kBool, 0);
  writer.Add<int32_t>(prefix + "unknown_token_id", Writer::kI32, 0);
  writer.Add<int32_t>(prefix + "eos_token_id", Writer::kI32, 1);
  const std::vector<uint8_t> bytes = writer.Finish();
  const Tokenizer tokenizer(GgufFile::Parse(bytes, "test"));
  EXPECT_THAT(tokenizer.Encode("a<a>a </a>"), ElementsAre(3, 2, 3, 4, 1, 1));
  EXPECT_THAT(tokenizer.Encode("a\u2581"), ElementsAre(3, 4, 1));
}

}  // namespace
}  // namespace riffle::engine
