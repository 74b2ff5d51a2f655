// Keys of a GGUF file that name a token of its vocabulary.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/gguf/gguf.h"

namespace riffle::engine {

// The token that tokenizer.ggml.NAME is, or the first one if it is a list. Throws BadModel unless
// it is one of `tokens` tokens.
inline int32_t ReadToken(const GgufFile& file, std::string_view name, size_t tokens) {
  const std::string key = fmt::format("tokenizer.ggml.{}", name);
  const std::vector<int64_t> listed = file.IntegerOrIntegers(key);
  if (listed.empty()) file.Fail(fmt::format("metadata \"{}\" is an empty list", key));
  const int64_t token = listed.front();
  if (token < 0 || token >= static_cast<int64_t>(tokens)) {
    file.Fail(fmt::format("metadata \"{}\" is {}, but there are {} tokens", key, token, tokens));
  }
  return static_cast<int32_t>(token);
}

}  // namespace riffle::engine
