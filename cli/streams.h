// Standard input, output and error, whatever the caller made of them.
#pragma once

#include <string_view>

namespace riffle::cli {

// Opens /dev/null where the caller closed a standard stream. A file that is opened later would get
// its number otherwise, and be written by what is meant for the stream. Writing to a standard
// output that was closed still fails.
void OpenStandardStreams();

// Errors, notes and progress. A standard error that is closed or full changes nothing else: not the
// exit code, not the output.
void PrintToStderr(std::string_view text) noexcept;

// Throws std::runtime_error if something that was printed did not arrive: a full disk, a reader
// that closed the pipe while SIGPIPE is ignored. Call it after every part of a long output, so that
// the command does not go on for nobody.
void FlushOutput();

}  // namespace riffle::cli
