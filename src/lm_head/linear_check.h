// What the entry points of the linear layer check before anything is read or written.
#pragma once

#include "riffle/linear_topk.h"

namespace riffle::lm_head {

// Whether the columns of y, not the inputs, are contiguous in W.
bool IsTransposed(const WeightView& weight);

void CheckLinearInputs(const MatrixView& x, const WeightView& weight, const BiasView& bias);
void CheckLinear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
                 const LinearOptions& options);
void CheckLinearTopK(const MatrixView& x, const WeightView& weight, int64_t k,
                     const LinearTopKOut& out, const LinearOptions& options);

}  // namespace riffle::lm_head
