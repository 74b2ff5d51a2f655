// The method of a tokenizer: how the text between special tokens becomes tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace riffle::engine {

// Tokens by their text; a string_view is looked up without a copy.
struct TextHash : std::hash<std::string_view> {
  using is_transparent = void;
};
using TokenOfText = std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>>;

// The token's type in a GGUF file.
enum class TokenType : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

class FragmentEncoder {
 public:
  virtual ~FragmentEncoder() = default;
  // Rewrites a text (such as spaces as U+2581) before special tokens are looked for in it; the
  // texts of the special tokens are rewritten likewise.
  virtual std::string EscapeSpaces(std::string_view text) const = 0;
  // Appends the tokens of a fragment as EscapeSpaces returned it. Pre: UTF-8, not empty.
  virtual void Encode(std::string_view fragment, std::vector<int32_t>* out) const = 0;
  // The bytes that a token stands for, given its text in the file.
  virtual std::string TokenBytes(std::string_view text, TokenType type) const = 0;
  // Whether the first fragment of a text got a space that it did not have.
  virtual bool adds_space() const { return false; }
  // Whether BOS goes before a text if the file does not say.
  virtual bool adds_bos() const = 0;
  // Whether EOS goes after a text if the file does not say.
  virtual bool adds_eos() const { return false; }
};

}  // namespace riffle::engine
