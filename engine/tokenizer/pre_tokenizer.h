// How byte-level BPE cuts a text into pre-tokens, none of which a token crosses: the patterns of
// four families, as scans that look at each character a bounded number of times.
//
//   gpt2     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   smollm   every \p{N} by itself, gpt2 in what lies between
//   llama3   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//             ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//   qwen2    llama3 with single \p{N}
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace riffle::engine {

enum class PreTokenizer : uint8_t { kGpt2, kSmolLm, kLlama3, kQwen2 };

// By the names that files have in tokenizer.ggml.pre.
std::optional<PreTokenizer> PreTokenizerOf(std::string_view name);
std::string PreTokenizerNames();  // for messages

// The lengths in bytes of the pre-tokens, which add up to the text. Pre: `text` is valid UTF-8.
std::vector<size_t> SplitText(PreTokenizer pre_tokenizer, std::string_view text);

}  // namespace riffle::engine
