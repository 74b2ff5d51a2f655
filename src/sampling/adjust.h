// What changes logits before they are sampled: allowed columns, biases, penalties.
#pragma once

#include <cstdint>

#include "riffle/sampling.h"

namespace riffle::sampling {

// Whether the options change logits at all. Penalties of 1 and 0, which front ends give for "none",
// do not: logits are then read in place instead of being copied to f32, which would take longer
// than most draws.
bool Adjusts(const SampleOptions& options);

// Throws Error for lists of tokens that do not fit the rows of the logits, or their columns.
void CheckTokens(const char* name, const TokenLists& lists, const MatrixView& logits);

// Throws Error for lists that do not fit the logits. Reads the lists.
void CheckAdjustments(const MatrixView& logits, const SampleOptions& options);

// The changed logits, f32, in `memory` of AdjustedBytes. Throws Error(kOutOfMemory). Pre: rows > 0.
size_t AdjustedBytes(const MatrixView& logits);
MatrixView Adjust(const MatrixView& logits, const SampleOptions& options, uint8_t* memory);

}  // namespace riffle::sampling
