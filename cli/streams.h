// Standard input, output and error, whatever state the caller left them in.
#pragma once

#include <string_view>

namespace riffle::cli {

// Opens /dev/null in place of standard streams that the caller closed. Otherwise a file opened
// later would get such a stream's number, and text meant for the stream would be written into it.
// Writing to a closed standard output still fails.
void OpenStandardStreams();

// For errors, notes and progress. If standard error is closed or full, nothing else changes:
// neither the exit code nor the output.
void PrintToStderr(std::string_view text) noexcept;

// Throws std::runtime_error if something printed did not arrive: the disk is full, or a reader
// closed the pipe while SIGPIPE is ignored. Call it after every part of a long output, so that the
// command does not go on when nobody reads.
void FlushOutput();

}  // namespace riffle::cli
