// The kernels of sparse attention beside those of riffle/attention.h, which do the arithmetic.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/sparse_attention.h"

namespace riffle::sparse {

// Coded rows are decoded this many at a time.
inline constexpr int64_t kGatherRows = 16;

struct GatherKernels {
  // Decodes rows [begin, end) of those that a query names, one after the other. The first counts[0]
  // of `slots` are of scopes[0], the next counts[1] of scopes[1], and so on; -1 stands for a row of
  // zeros.
  //   to  [end - begin + kGatherRows - 1][row_dim] in `dtype`, aligned: f32, or bf16 where all rows
  //       are bf16, mla656 or mla584. What follows the rows may be overwritten.
  void (*gather)(std::span<const SparseScope> scopes, const int32_t* slots, const int32_t* counts,
                 int64_t begin, int64_t end, DType dtype, uint8_t* to);
};
const GatherKernels& GetGatherKernels();

}  // namespace riffle::sparse
