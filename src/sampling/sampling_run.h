// Runs a checked call of sampling.
#pragma once

#include <cstdint>
#include <span>

#include "sampling/sampling_batch.h"

namespace riffle::sampling {

// Draws tokens[row] for every row, and its log-probability where `logprobs` is not empty. Throws
// Error(kBadValue) for rows that cannot be sampled.
void RunSample(const SamplingBatch& batch, std::span<int32_t> tokens, std::span<float> logprobs);

}  // namespace riffle::sampling
