#include "speed.h"

#include "log.h"

namespace riffle::llama {

bool IsFaster(const AttentionNode& node) {
  // One token a sequence: llama.cpp's kernel has less to set up.
  constexpr int64_t kMinCells = 0;
  return Always() || node.cells() >= kMinCells;
}

}  // namespace riffle::llama
