// The kernels of sparse attention beside those of riffle/attention.h, which do the arithmetic.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/sparse_attention.h"

namespace riffle::sparse {

struct GatherKernels {
  // Rows [begin, end) of those that a query names, decoded, one behind the other. The first
  // counts[0] of `slots` are of scopes[0], the next counts[1] of scopes[1], and so on; -1 stands
  // for a row of zeros.
  //   to  [end - begin][row_dim] in `dtype`, f32 or bf16; bf16 only of bf16 and coded rows
  void (*gather)(std::span<const SparseScope> scopes, const int32_t* slots, const int32_t* counts,
                 int64_t begin, int64_t end, DType dtype, uint8_t* to);
};
const GatherKernels& GetGatherKernels();

}  // namespace riffle::sparse
