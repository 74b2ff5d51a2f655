// Which nodes Riffle computes faster than llama.cpp's own kernel.
#pragma once

#include "attention_node.h"

namespace riffle::llama {

bool IsFaster(const AttentionNode& node);

}  // namespace riffle::llama
