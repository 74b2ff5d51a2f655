// A checked call of the linear layer: the arguments of its kernels, and packing of rows of x.
#pragma once

#include <cstdint>

#include "core/lease.h"
#include "lm_head/linear_args.h"
#include "lm_head/product_kernels.h"
#include "riffle/linear_topk.h"

namespace riffle::lm_head {

class LinearCall {
 public:
  LinearCall(const MatrixView& x, const WeightView& weight, const LinearOptions& options);

  // Bytes of `rows` packed rows.
  size_t PackedXBytes(int64_t rows) const;

  // Packs rows [begin, begin + rows) of x, or of the rows in the list, into `operands`, which has
  // PackedXBytes(rows). The result is valid until the next call.
  const LinearArgs& PackRows(const int32_t* row_list, int64_t begin, int64_t rows,
                             uint8_t* operands, core::Lease& lease);

  // The arguments without the rows.
  const LinearArgs& args() const { return args_; }
  int64_t rows() const { return x_.rows; }

 private:
  const PackKernels& pack_;
  MatrixView x_;
  bool round_to_bf16_;
  LinearArgs args_;
};

// Stores the product of all rows and all of W in y.
void RunLinear(LinearCall& call, const OutView<float>& y, core::Lease& lease);

}  // namespace riffle::lm_head
