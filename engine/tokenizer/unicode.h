// What byte-level BPE needs to know of Unicode: classes of characters and composition, by utf8proc.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace riffle::engine {

// A character's class in the patterns of pre-tokenizers: \p{L}, \p{N}, \s, and the rest.
enum class CharacterClass : uint8_t { kLetter, kNumber, kSpace, kOther };

CharacterClass ClassOf(char32_t character);

// The first character of valid UTF-8, and its bytes.
struct Character {
  char32_t code;
  size_t length;
};
// Pre: `text` is valid UTF-8, not empty.
Character DecodeFirst(std::string_view text);

// Normalization form C. Pre: `text` is valid UTF-8. Throws std::bad_alloc.
std::string Compose(std::string_view text);

}  // namespace riffle::engine
