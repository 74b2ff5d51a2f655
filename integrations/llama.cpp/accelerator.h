// Riffle as a device of its own, beside that of the CPU: for builds of llama.cpp whose CPU backend
// is not a file. ggml's scheduler gives it the nodes that it says it supports; their
// memory is the CPU's, so nothing is copied.
#pragma once

#include "ggml_abi.h"
#include "ggml_host.h"

namespace riffle::llama {

// The same one at each call.
ggml::Registry& AcceleratorRegistry(const Host& host);

}  // namespace riffle::llama
