// The library's stopwatch, for the engine and the command that runs it.
#pragma once

#include "core/stopwatch.h"

namespace riffle::engine {

using core::Stopwatch;

}  // namespace riffle::engine
