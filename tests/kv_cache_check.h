// What the tests of KvCache share.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "riffle/attention.h"
#include "riffle/error.h"

namespace riffle::test {

// `call` must throw an Error of this code whose text contains `part_of_text`.
template <typename F>
void ExpectError(Code code, const std::string& part_of_text, const F& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected: " << part_of_text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(std::string(error.what()).find(part_of_text), std::string::npos) << error.what();
  }
}

// Where an element of a page lies.
inline const uint8_t* Element(const PagedKv& kv, int64_t page, int64_t token, int64_t head,
                              int64_t i) {
  const int64_t at = page * kv.page_stride + token * kv.token_stride + head * kv.head_stride + i;
  return static_cast<const uint8_t*>(kv.data) + at * static_cast<int64_t>(SizeOf(kv.dtype));
}

}  // namespace riffle::test
