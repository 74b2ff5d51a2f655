// The answer that every timed call is held against: std::partial_sort on (key, index), one element
// after the other, knowing nothing of the library but its contract.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "riffle/types.h"

namespace riffle::cli {

// Larger keys come first in the contract's order: NaN above +inf and all equal, -0 equal to +0.
uint32_t OrderKey(float value);

// Columns of the best min(k, cols) elements of each row, best first: [rows, min(k, cols)].
std::vector<int32_t> ReferenceTopK(const MatrixView& x, int64_t k);

// Holds indices[rows, k] against the reference's first k of each row of stride `reference_k` (a
// shorter row of the reference means -1 padding), and values[rows, k] (null: none) against the
// elements they stand for, by the bit. Returns "" or what differs first.
std::string Compare(const MatrixView& x, int64_t k, std::span<const int32_t> reference,
                    int64_t reference_k, std::span<const int32_t> indices, const void* values);

}  // namespace riffle::cli
