// The library's texts for errors, for the engine and the command that runs it.
#pragma once

#include "core/printable.h"

namespace riffle::engine {

using core::Printable;
using core::Quote;

}  // namespace riffle::engine
