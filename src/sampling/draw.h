// What the filters keep of one row, and the draw of its token.
#pragma once

#include <cstdint>

#include "sampling/sampling_batch.h"

namespace riffle::sampling {

// What the filters keep: the candidates, best first, or if there are none, the columns that the cut
// keeps and the nucleus's ties.
struct Kept {
  Candidates candidates;
  Cut cut;
  Nucleus nucleus;
};

class RowDraw {
 public:
  // `first`: the row's plan.first best columns. `sums`: the weight of each block, where the plan
  // needs the sum of all. `memory`: the thread's scratch, in which `scratch` places the arrays.
  RowDraw(const SamplingBatch& batch, int64_t row, const Candidates& first, double* sums,
          const DrawScratch& scratch, uint8_t* memory);

  // Returns the token. Call it once per row: it may overwrite the sums.
  int32_t Draw();

  // Writes -inf to the columns of the row that the filters drop.
  void Mask(float* x);

 private:
  Kept Filter();
  Kept FilterCandidates();
  Kept FilterNucleus();
  Candidates Best(int64_t count) const;
  void WeighCandidates(const Candidates& from) const;
  Candidates DropBelowMinWeight(Candidates from) const;
  int32_t DrawFromAll(const Cut& cut, const Nucleus& nucleus) const;

  const SamplingBatch& batch_;
  const int64_t row_;
  const RowPlan plan_;
  const Candidates first_;
  double* const sums_;
  const Candidates memory_;  // for more candidates than `first_` has
  float* const weights_;
  uint8_t* const rest_;
  const WeightRow row_weights_;
};

}  // namespace riffle::sampling
