// Texts from files, command lines and the environment, made safe to print in an error.
#pragma once

#include <string>
#include <string_view>

namespace riffle::core {

// `text` in printable ASCII: other bytes become \xNN, and it is cut off after kMaxPrintable
// characters. A terminal then shows escape sequences and does not obey them.
inline constexpr size_t kMaxPrintable = 80;
inline std::string Printable(std::string_view text) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string printable;
  for (const char c : text) {
    if (printable.size() >= kMaxPrintable) {
      return printable + "...";
    }
    if (c >= ' ' && c <= '~') {
      printable += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      printable += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return printable;
}

// The same in quotes.
inline std::string Quote(std::string_view text) {
  std::string quoted(1, '\'');
  quoted += Printable(text);
  quoted += '\'';
  return quoted;
}

}  // namespace riffle::core
