// Where scripts/model.sh puts the model.
#pragma once

#include <string>

namespace riffle::engine {

// Of the cache folder that RIFFLE_CACHE, XDG_CACHE_HOME or HOME names.
std::string DefaultModelPath();

}  // namespace riffle::engine
