// LinearTopK by way of the screen (screen_args.h).
#pragma once

#include <cstdint>

#include "riffle/linear_topk.h"

namespace riffle::lm_head {

enum class Screening : uint8_t {
  kAuto,  // where it pays
  kNever,
  kAlways,  // where the weights are Q8_0 and d allows it, on every SIMD target
};

// What became of the rows of a call.
struct ScreenStats {
  int64_t screened = 0;  // rows whose answer comes from candidates
  int64_t given_up = 0;  // rows that had too many, or could not be screened: multiplied as a whole
  int64_t multiplied = 0;  // columns of all screened rows that were multiplied exactly
};

// As riffle::LinearTopK, which is this with kAuto.
void LinearTopKBy(Screening screening, const MatrixView& x, const WeightView& weight, int64_t k,
                  const LinearTopKOut& out, const LinearOptions& options, ScreenStats* stats);

}  // namespace riffle::lm_head
