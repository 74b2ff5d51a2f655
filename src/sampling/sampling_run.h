// Runs a checked call of sampling.
#pragma once

#include <cstdint>
#include <span>

#include "sampling/sampling_batch.h"

namespace riffle::sampling {

// Draws tokens[row] for every row, and its log-probability where `logprobs` is not empty. Throws
// Error(kBadValue) for rows that cannot be sampled, if the options say so.
void RunSample(const SamplingBatch& batch, std::span<int32_t> tokens, std::span<float> logprobs);

// Masks the rows of a batch that does not draw; `logits` is its matrix.
void RunFilters(const SamplingBatch& batch, float* logits);

}  // namespace riffle::sampling
