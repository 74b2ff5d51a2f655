// UTF-8, strictly (Unicode 3.9, table 3-7): no overlong forms, no surrogates, nothing past
// U+10FFFF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace riffle::engine {

struct Utf8Character {
  enum Kind { kValid, kInvalid, kIncomplete } kind;
  size_t length;  // kInvalid: the bytes that one U+FFFD stands for; kIncomplete: all there are
};

// What `text` starts with. kIncomplete: more bytes could make it valid. Pre: not empty.
Utf8Character FirstCharacter(std::string_view text);

// The offset of the first byte that is not UTF-8 (an incomplete end included), or npos.
size_t FindInvalidUtf8(std::string_view text);

}  // namespace riffle::engine
