// What the doors of the linear layer check before anything is read or written.
#pragma once

#include "riffle/linear_topk.h"

namespace riffle::lm_head {

// Whether W is taken as contiguous along the columns of y.
bool IsTransposed(const WeightView& weight);

void CheckLinearInputs(const MatrixView& x, const WeightView& weight, const BiasView& bias);
void CheckLinear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
                 const LinearOptions& options);
void CheckLinearTopK(const MatrixView& x, const WeightView& weight, int64_t k,
                     const LinearTopKOut& out, const LinearOptions& options);

}  // namespace riffle::lm_head
