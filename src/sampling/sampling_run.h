// Runs a checked call of sampling.
#pragma once

#include <cstdint>
#include <span>

#include "sampling/sampling_batch.h"

namespace riffle::sampling {

// Draws tokens[row] for every row, and its log-probability where `logprobs` is not empty. Throws
// Error(kBadValue) for rows that cannot be sampled, if the options say so.
// Leaves the first `reserved` bytes of the thread's arena of sampling alone.
void RunSample(const SamplingBatch& batch, std::span<int32_t> tokens, std::span<float> logprobs,
               size_t reserved = 0);

// Makes room in the thread's arena of sampling for `reserved` bytes and, behind them, for RunSample
// of the batch. Returns the arena. Throws Error(kOutOfMemory).
uint8_t* ReserveBefore(const SamplingBatch& batch, size_t reserved);

// The same arena, with room for `bytes`.
uint8_t* ReserveArena(size_t bytes);

// Verifies the draft of each row, -1 where it has none: tokens[row] becomes the draft, or the token
// drawn in its place. `probabilities` has the rows that have drafts, or no data.
void VerifyRows(const SamplingBatch& batch, std::span<const int32_t> drafts,
                const MatrixView& probabilities, std::span<int32_t> tokens, size_t reserved);

// Masks the rows of a batch that does not draw; `logits` is its matrix.
void RunFilters(const SamplingBatch& batch, float* logits);

}  // namespace riffle::sampling
