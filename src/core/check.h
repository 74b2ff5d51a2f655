// Checks at an entry point. The text is built only when a check fails.
#pragma once

#include <cctype>
#include <sstream>
#include <string>
#include <string_view>

#include "riffle/error.h"

namespace riffle::core {

template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// The length of the argument's name at the start of an error text; 0 if the text does not begin
// with one. A name is recognised by what follows it: "k = ...", "kv_lens[1] = ...", "keys.num_pages
// = ...", "x has ...", "q's ...".
inline size_t ArgumentSize(std::string_view text) {
  size_t size = 0;
  while (size < text.size() &&
         (std::isalnum(static_cast<unsigned char>(text[size])) != 0 || text[size] == '_')) {
    ++size;
  }
  const std::string_view rest = text.substr(size);
  for (const std::string_view form : {" = ", "[", ".", " has ", "'s ", " is null", " shares "}) {
    if (rest.starts_with(form)) {
      return size;
    }
  }
  return 0;
}

template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void Fail(Code code, const Parts&... parts) {
  const std::string text = Concat(parts...);
  throw Error(code, text, ArgumentSize(text));
}

template <typename... Parts>
void Check(bool ok, Code code, const Parts&... parts) {
  if (!ok) [[unlikely]] {
    Fail(code, parts...);
  }
}

}  // namespace riffle::core
