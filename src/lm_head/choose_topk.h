// LinearTopK with the prefilter on or off, for tests.
#pragma once

#include <cstdint>

#include "lm_head/prefilter/prefilter_topk.h"
#include "riffle/linear_topk.h"

namespace riffle::lm_head {

enum class PrefilterMode : uint8_t {
  kAuto,  // if it saves time
  kNever,
  kAlways,  // if possible, on every SIMD target
};

// riffle::LinearTopK is this function with kAuto. `stats` may be null; it is not written where the
// prefilter does not run.
void LinearTopKWith(PrefilterMode mode, const MatrixView& x, const WeightView& weight, int64_t k,
                    const LinearTopKOut& out, const LinearOptions& options, PrefilterStats* stats);

}  // namespace riffle::lm_head
