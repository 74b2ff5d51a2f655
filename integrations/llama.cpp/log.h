// What the environment asks for, and lines to stderr, where llama.cpp writes too.
#pragma once

#include <string>

namespace riffle::llama {

// RIFFLE_GGML=0: Riffle does nothing in this process.
bool TurnedOff();

// RIFFLE_GGML_LOG=1: Log and LogOnce print.
bool Logging();

// "riffle: " and the line, always.
void Warn(const std::string& line);

void Log(const std::string& line);

// A line that has not been printed before.
void LogOnce(const std::string& line);

}  // namespace riffle::llama
