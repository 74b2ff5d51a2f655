// Checks at the door. The text is built only when a check fails.
#pragma once

#include <sstream>
#include <string>

#include "riffle/error.h"

namespace riffle::core {

template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void Fail(Code code, const Parts&... parts) {
  throw Error(code, Concat(parts...));
}

template <typename... Parts>
void Check(bool ok, Code code, const Parts&... parts) {
  if (!ok) [[unlikely]] {
    Fail(code, parts...);
  }
}

}  // namespace riffle::core
