// Standard input, output and error, whatever state the caller left them in.
#pragma once

#include <string_view>

#include "engine/tokenizer/utf8.h"

namespace riffle::cli {

// Opens /dev/null in place of standard streams that the caller closed. Otherwise a file opened
// later would get such a stream's number, and text meant for the stream would be written into it.
// Writing to a closed standard output still fails.
void OpenStandardStreams();

// For errors, notes and progress. If standard error is closed or full, nothing else changes:
// neither the exit code nor the output.
void PrintToStderr(std::string_view text) noexcept;

// Whether a terminal would obey this character of valid UTF-8: C0, DEL and C1.
inline bool IsControl(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  return character.size() == 1 ? first < 0x20 || first == 0x7f
                               : first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0;
}

// Calls print(part) for the parts of `text`, in order, with \xNN in place of what a terminal would
// obey: control characters other than line feed, and bytes that are not UTF-8. Use it for whole
// errors, which may name files by any bytes; safe in a signal handler if print() is.
template <typename Print>
void PrintEscaped(std::string_view text, const Print& print) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  while (!text.empty()) {
    const engine::Utf8Character character = engine::FirstCharacter(text);
    const std::string_view part = text.substr(0, character.length);
    const bool control = part != "\n" && IsControl(part);
    if (character.kind == engine::Utf8Character::kValid && !control) {
      print(part);
    } else {
      for (const char c : part) {
        const auto byte = static_cast<unsigned char>(c);
        const char escaped[] = {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
        print(std::string_view(escaped, sizeof(escaped)));
      }
    }
    text.remove_prefix(part.size());
  }
}

// Throws std::runtime_error if something printed did not arrive: the disk is full, or a reader
// closed the pipe while SIGPIPE is ignored. Call it after every part of a long output, so that the
// command does not go on when nobody reads.
void FlushOutput();

}  // namespace riffle::cli
