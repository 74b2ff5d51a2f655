// The kernels of the screen. They trust what the doors have checked.
#pragma once

#include <cstdint>

#include "lm_head/screen_plan.h"

namespace riffle::lm_head {

struct ScreenSink {
  ScreenPlan plan;
  ScreenScratch layout;
  ScreenLists lists;
  int64_t k = 0;
  int64_t piece = 0;
};

// Pre: scratch is 64-byte aligned and has the bytes of PlanScreenScratch.
struct ScreenKernels {
  bool native;  // whether there are int8 dot products, without which screening does not pay
  // Row `row` of args.linear into args.x and args.errors. False if it cannot be screened.
  bool (*quantize_row)(const ScreenArgs& args, int64_t row);
  void (*screen_tiles)(const ScreenArgs& args, int64_t begin, int64_t end, const ScreenSink& sink,
                       uint8_t* scratch);
  // What screen_tiles knows of the logits of a tile, for tests: lower, upper [rows][kTile].
  void (*tile_bounds)(const ScreenArgs& args, int64_t tile, const ScreenScratch& layout,
                      uint8_t* scratch, float* lower, float* upper);
};
const ScreenKernels& GetScreenKernels();

}  // namespace riffle::lm_head
