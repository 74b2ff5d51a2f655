#include "cli/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <system_error>

namespace riffle::cli {
namespace {

constexpr double kMaxSeconds = 86400;

template <typename T>
bool ParseWhole(const std::string& text, T* value) {
  const char* const end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data(), end, *value);
  return error == std::errc() && parsed == end;
}

// Whether CLI11 would take the text for an option, after the values of another one.
bool IsOption(const std::string& text) {
  const auto starts_name = [](char c) { return c != '-' && c != '!' && c != ' ' && c != '\n'; };
  if (text.size() < 2 || text[0] != '-') {
    return false;
  }
  if (text[1] == '-') {
    return text.size() == 2 || starts_name(text[2]);
  }
  return starts_name(text[1]) && !(text[1] >= '0' && text[1] <= '9');
}

}  // namespace

std::string CheckCount(const std::string& text) {
  int64_t count = 0;
  return ParseWhole(text, &count) && count >= 0 ? "" : text + " is not an integer of 0 or more";
}

std::string CheckSeconds(const std::string& text) {
  double seconds = 0;
  const bool ok = ParseWhole(text, &seconds) && seconds > 0 && seconds <= kMaxSeconds;
  return ok ? "" : text + " is not a number of seconds above 0, at most 86400";
}

std::string CheckGiven(const std::string& text) { return text.empty() ? "is empty" : ""; }

// CLI11 would wrap -1 around to 2^64 - 1, and would accept 2^64 as well.
std::string CheckSeed(const std::string& text) {
  uint64_t seed = 0;
  return ParseWhole(text, &seed) ? "" : text + " is not an integer from 0 to 2^64 - 1";
}

std::vector<std::string> ReversedArguments(int argc, char** argv) {
  constexpr std::string_view kPrompt = "--prompt";
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    arguments.push_back(argv[i]);
    const std::string option = arguments.back();
    const bool takes_text = option == kPrompt || option == "--stop" || option == "--system";
    if (!takes_text || i + 1 == argc) {
      continue;
    }
    arguments.pop_back();
    // The first text may be anything; the others of --prompt end at the next option.
    const int first = i + 1;
    const auto more = [&] { return option == kPrompt && !IsOption(argv[i + 1]); };
    for (; i + 1 < argc && (i + 1 == first || more()); ++i) {
      const std::string text = argv[i + 1];
      if (text.empty()) {  // --prompt= would take the next argument as its value
        arguments.push_back(option);
        arguments.push_back(text);
      } else {
        arguments.push_back(option + "=" + text);
      }
    }
  }
  std::reverse(arguments.begin(), arguments.end());
  return arguments;
}

}  // namespace riffle::cli
