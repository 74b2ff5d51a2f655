// Builds the text of a failure.
#pragma once

#include <sstream>
#include <string>

namespace riffle::test {

template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace riffle::test
