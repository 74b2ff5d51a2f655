// Fixtures of tokenizers: texts that are named by numbers, and the tokens that another program
// makes of thousands of them, kept as checksums.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "testing/crc32.h"
#include "testing/paths.h"
#include "testing/rng.h"

namespace riffle::engine {

// A file of tests/data.
inline nlohmann::json ReadFixture(const std::string& name) {
  std::ifstream stream(std::string(test::kTestData) + "/" + name);
  return nlohmann::json::parse(stream);
}

// Texts of up to 24 words and other parts, as the make_*_fixture.py here compose them.
class FixtureTexts {
 public:
  // Of a fixture's parts, whose first ones are words.
  explicit FixtureTexts(const nlohmann::json& fixture)
      : parts_(fixture["parts"].get<std::vector<std::string>>()),
        words_(fixture["words"].get<int64_t>()) {}

  std::string operator[](uint64_t number) const {
    test::Rng rng(number);
    std::string text;
    for (int64_t count = 1 + rng.Below(24); count > 0; --count) {
      const bool word = rng.Below(5) > 0;
      text += parts_[static_cast<size_t>(
          rng.Below(word ? words_ : static_cast<int64_t>(parts_.size())))];
    }
    return text;
  }

 private:
  std::vector<std::string> parts_;
  int64_t words_;
};

// Whether encode(text) gives the tokens of `expected` for each of `count` texts: "shown" holds the
// first ones whole, `checksums` the CRC-32 of all, or its low half where 4 hexadecimal digits stand
// for a text. `also` looks at each text and its tokens.
inline void ExpectFixtureTokens(
    const nlohmann::json& expected, const char* checksums, size_t count, const FixtureTexts& texts,
    const std::function<std::vector<int32_t>(const std::string&)>& encode,
    const std::function<void(const std::string&, const std::vector<int32_t>&)>& also = {}) {
  const auto digits = expected[checksums].get<std::string>();
  const size_t each = digits.size() / count;
  ASSERT_EQ(digits.size(), each * count);
  ASSERT_TRUE(each == 4 || each == 8) << each;
  int wrong = 0;
  for (size_t i = 0; i < count && wrong < 10; ++i) {
    const std::string text = texts[i];
    const std::vector<int32_t> tokens = encode(text);
    if (i < expected["shown"].size()) {
      EXPECT_EQ(tokens, expected["shown"][i].get<std::vector<int32_t>>())
          << ::testing::PrintToString(text);
    }
    const auto crc = static_cast<uint32_t>(std::stoul(digits.substr(each * i, each), nullptr, 16));
    const uint32_t got = riffle::testing::Crc32(tokens.data(), tokens.size() * sizeof(int32_t));
    const bool same = (each == 4 ? got & 0xffff : got) == crc;
    EXPECT_TRUE(same) << "text " << i << ": " << ::testing::PrintToString(text) << " gives "
                      << ::testing::PrintToString(tokens);
    wrong += !same;
    if (also) also(text, tokens);
  }
}

}  // namespace riffle::engine
