// POSIX, and Windows, which is untested.
#include "engine/default_model.h"

#include <cstdlib>

#if !defined(_WIN32)
#include <pwd.h>
#include <unistd.h>
#endif

namespace riffle::engine {
namespace {

// Like the shell's ${NAME:-}: a variable that is set but empty counts as unset.
std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Like the shell's ~ where HOME is unset.
std::string Home() {
  const std::string home = Environment("HOME");
#if defined(_WIN32)
  return home.empty() ? Environment("USERPROFILE") : home;
#else
  const passwd* const user = home.empty() ? ::getpwuid(::getuid()) : nullptr;
  return user == nullptr || user->pw_dir == nullptr ? home : user->pw_dir;
#endif
}

}  // namespace

std::string ModelFolder() {
  std::string cache = Environment("RIFFLE_CACHE");
  if (cache.empty()) {
    const std::string base = Environment("XDG_CACHE_HOME");
    cache = (base.empty() ? Home() + "/.cache" : base) + "/riffle";
  }
  return cache + "/models";
}

std::string DefaultModelPath() { return ModelFolder() + "/gemma-3-270m-q4_k_m.gguf"; }
std::string ChatModelPath() { return ModelFolder() + "/smollm2-135m-instruct-q4_1.gguf"; }

}  // namespace riffle::engine
