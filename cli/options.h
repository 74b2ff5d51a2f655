// What the subcommands' options share: checks of their values, and how texts are told from options.
#pragma once

#include <string>
#include <vector>

namespace riffle::cli {

// Checks for CLI11: empty, or what is wrong with the value.
std::string CheckCount(const std::string& text);    // an integer of 0 or more
std::string CheckSeconds(const std::string& text);  // above 0, at most a day
std::string CheckGiven(const std::string& text);    // not the empty text
std::string CheckSeed(const std::string& text);     // 0 to 2^64 - 1

// The arguments of the command, the last one first, as CLI11 takes them. Each text behind --prompt
// becomes an option of its own, --prompt=TEXT: CLI11 would take the text ++ for the end of the
// subcommand and drop those behind it.
std::vector<std::string> ReversedArguments(int argc, char** argv);

}  // namespace riffle::cli
