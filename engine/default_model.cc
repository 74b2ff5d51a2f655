#include "engine/default_model.h"

#include <cstdlib>

namespace riffle::engine {
namespace {

// As in the shell's ${NAME:-}: set but empty is as good as unset.
std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::string DefaultModelPath() {
  std::string cache = Environment("RIFFLE_CACHE");
  if (cache.empty()) {
    const std::string base = Environment("XDG_CACHE_HOME");
    cache = (base.empty() ? Environment("HOME") + "/.cache" : base) + "/riffle";
  }
  return cache + "/models/gemma-3-270m-q4_k_m.gguf";
}

}  // namespace riffle::engine
