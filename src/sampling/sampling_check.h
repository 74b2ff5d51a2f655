// The argument checks of the sampling entry point.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/sampling.h"

namespace riffle::sampling {

// Throws Error before anything is written. Of the caller's arrays it reads only the options.
void CheckSample(const MatrixView& logits, const SampleOptions& options,
                 std::span<const int32_t> tokens, std::span<const float> logprobs);

// The same for a call that filters `logits` in place.
void CheckFilters(const MatrixView& logits, const SampleOptions& options);

}  // namespace riffle::sampling
