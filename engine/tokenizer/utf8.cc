#include "engine/tokenizer/utf8.h"

namespace riffle::engine {

Utf8Character FirstCharacter(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Character::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Character::kInvalid, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what is past U+10FFFF.
  uint8_t first = 0x80, last = 0xBF;
  if (lead == 0xE0) first = 0xA0;
  if (lead == 0xED) last = 0x9F;
  if (lead == 0xF0) first = 0x90;
  if (lead == 0xF4) last = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Character::kIncomplete, i};
    if (byte(i) < first || byte(i) > last) return {Utf8Character::kInvalid, i};
    first = 0x80, last = 0xBF;
  }
  return {Utf8Character::kValid, length};
}

size_t FindInvalidUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Character character = FirstCharacter(text.substr(at));
    if (character.kind != Utf8Character::kValid) return at;
    at += character.length;
  }
  return std::string_view::npos;
}

}  // namespace riffle::engine
