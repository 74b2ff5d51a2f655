// The checks of SparseAttention and WriteSparseRows. All throw Error; nothing is written.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/sparse_attention.h"

namespace riffle::sparse {

inline constexpr int kMaxRowDim = 1024;
inline constexpr int kMaxScopes = 8;

void CheckSparseAttention(const HeadsView& q, std::span<const SparseScope> scopes,
                          const AttentionOut& out, const SparseAttentionOptions& options);
void CheckWriteSparseRows(const MatrixView& x, const IndexSpan& slots, const SparseRowsOut& rows);

}  // namespace riffle::sparse
