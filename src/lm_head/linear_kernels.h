// The kernel of Linear.
#pragma once

#include <cstdint>

#include "lm_head/linear_plan.h"

namespace riffle::lm_head {

// Where the logits go: y [rows, vocab].
struct StoreTask {
  TileScratch layout;
  float* y = nullptr;
  int64_t row_stride = 0;  // elements
};

struct LinearKernels {
  // Computes and stores tiles [begin, end). `scratch` has layout.bytes.
  void (*store_tiles)(const LinearArgs& args, int64_t begin, int64_t end, const StoreTask& task,
                      uint8_t* scratch);
};
const LinearKernels& GetLinearKernels();

}  // namespace riffle::lm_head
