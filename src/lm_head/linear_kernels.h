// The kernels of the linear layer. They trust what the doors have checked.
#pragma once

#include <atomic>
#include <cstdint>

#include "lm_head/linear_args.h"
#include "lm_head/linear_plan.h"
#include "lm_head/screen_plan.h"

namespace riffle::lm_head {

// y [rows, vocab].
struct StoreSink {
  float* y = nullptr;
  int64_t row_stride = 0;  // elements
};

// Lists of candidates in a piece's scratch, and where it leaves what it kept.
struct KeptLists {
  int64_t* counts = nullptr;  // [pieces][rows]
  std::atomic<int32_t>* bounds =
      nullptr;                 // [rows]; a key that k logits of the row are known to reach
  int32_t* keys = nullptr;     // [pieces][rows][limit]
  int32_t* columns = nullptr;  // likewise
};
struct CandidateSink {
  CandidatePlan plan;
  ListLayout layout;  // in the scratch
  KeptLists kept;
  int64_t k = 0;
  int64_t piece = 0;
};

struct FinishTask {
  KeptLists kept;
  ListLayout layout;  // in the scratch
  int64_t pieces = 0;
  int64_t rows = 0;
  int64_t row = 0;
  int64_t limit = 0;
  int64_t k = 0;
  float* values = nullptr;     // [k]
  int32_t* indices = nullptr;  // [k]
};

// A row whose candidates the screen has found.
struct ScreenedRow {
  ScreenLists lists;
  ScreenFinish layout;  // in the scratch
  int64_t row = 0;
  int64_t k = 0;
  float* values = nullptr;     // [k]
  int32_t* indices = nullptr;  // [k]
};

// Pre: scratch is 64-byte aligned and has the bytes of PlanTileScratch, PlanLists, PlanFinishLists,
// PlanScreenFinish.
struct LinearKernels {
  bool native_bf16;  // whether words may be pairs of bf16
  void (*lay_out_x)(const LayOutX& task, int64_t row);
  void (*store_tiles)(const LinearArgs& args, int64_t begin, int64_t end, const StoreSink& sink,
                      uint8_t* scratch);
  void (*keep_tiles)(const LinearArgs& args, int64_t begin, int64_t end, const CandidateSink& sink,
                     uint8_t* scratch);
  void (*finish_row)(const FinishTask& task, uint8_t* scratch);
  // Returns how many columns were multiplied.
  int64_t (*finish_screened)(const LinearArgs& args, const ScreenedRow& task, uint8_t* scratch);
};
const LinearKernels& GetLinearKernels();

}  // namespace riffle::lm_head
