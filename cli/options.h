// What options of several subcommands share: checks of values, and telling texts from options.
#pragma once

#include <string>
#include <vector>

namespace riffle::cli {

// Checks for CLI11. They return an empty text, or what is wrong with the value.
std::string CheckCount(const std::string& text);    // an integer of 0 or more
std::string CheckSeconds(const std::string& text);  // above 0, at most a day
std::string CheckGiven(const std::string& text);    // not an empty text
std::string CheckSeed(const std::string& text);     // 0 to 2^64 - 1

// The command's arguments in reverse order, as CLI11 takes them. Each text after --prompt, and the
// one after --stop and --system, becomes an option of its own, --prompt=TEXT: otherwise CLI11 would
// take a text ++ for the end of the subcommand and drop those after it.
std::vector<std::string> ReversedArguments(int argc, char** argv);

}  // namespace riffle::cli
