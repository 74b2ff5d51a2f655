// The checks of the door of sampling.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/sampling.h"

namespace riffle::sampling {

// Throws Error; nothing is written, and of the caller's arrays only the options are read.
void CheckSample(const MatrixView& logits, const SampleOptions& options,
                 std::span<const int32_t> tokens, std::span<const float> logprobs);

}  // namespace riffle::sampling
