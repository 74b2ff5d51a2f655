#include "log.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string_view>

namespace riffle::llama {
namespace {

bool EnvironmentSays(const char* name, std::string_view value) {
  const char* found = std::getenv(name);
  return found != nullptr && value == found;
}

}  // namespace

bool TurnedOff() { return EnvironmentSays("RIFFLE_GGML", "0"); }

bool Logging() {
  static const bool logging = EnvironmentSays("RIFFLE_GGML_LOG", "1");
  return logging;
}

void Warn(const std::string& line) { std::fprintf(stderr, "riffle: %s\n", line.c_str()); }

void Log(const std::string& line) {
  if (Logging()) {
    Warn(line);
  }
}

void LogOnce(const std::string& line) {
  if (!Logging()) {
    return;
  }
  // Never destroyed: other threads may compute while the process ends.
  static auto& mutex = *new std::mutex;
  static auto& printed = *new std::set<std::string>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (printed.insert(line).second) {
    Warn(line);
  }
}

}  // namespace riffle::llama
