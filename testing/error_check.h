// Expectations of errors.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "riffle/error.h"

namespace riffle::test {

// Expects that call() throws an Error of `code` whose text has all of `words`.
template <typename Call>
void ExpectError(Code code, const std::vector<std::string>& words, const Call& call) {
  try {
    call();
    ADD_FAILURE() << "did not throw: " << ::testing::PrintToString(words);
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code()), static_cast<int>(code)) << error.what();
    for (const std::string& word : words) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos)
          << "'" << error.what() << "' does not say '" << word << "'";
    }
  }
}

template <typename Call>
void ExpectError(Code code, const char* word, const Call& call) {
  ExpectError(code, std::vector<std::string>{word}, call);
}

}  // namespace riffle::test
