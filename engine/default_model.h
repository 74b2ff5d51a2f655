// Where scripts/model.sh puts the models.
#pragma once

#include <string>

namespace riffle::engine {

// A folder in the cache folder that RIFFLE_CACHE, XDG_CACHE_HOME or HOME names.
std::string ModelFolder();
std::string DefaultModelPath();  // Gemma 3 270M, which continues texts
std::string ChatModelPath();     // SmolLM2 135M Instruct, which answers

}  // namespace riffle::engine
