// Compares results of top-k with the testing library's scalar reference, which shares nothing with
// the library but its contract. A call whose answer differs is not timed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "riffle/types.h"

namespace riffle::cli {

// The columns of the best min(k, cols) elements of each row, best first: [rows, min(k, cols)].
std::vector<int32_t> ReferenceTopK(const MatrixView& x, int64_t k);

// Compares indices[rows, k] with the first k of each row of `reference`, whose rows have
// `reference_k` columns (where k is larger, -1 must follow), and the bits of values[rows, k] (null:
// no values) with those of the elements of x. Returns "", or a text about the first difference.
std::string Compare(const MatrixView& x, int64_t k, std::span<const int32_t> reference,
                    int64_t reference_k, std::span<const int32_t> indices, const void* values);

}  // namespace riffle::cli
