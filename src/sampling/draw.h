// What the filters keep of one row, and the draw of its token.
#pragma once

#include <cstdint>
#include <optional>

#include "sampling/nucleus_search.h"
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
  // `first`: the row's plan.num_first best columns; if the plan is windowed, room for the best one,
  // which the constructor stores only if the pass through a window fails. `sums`: the weight of
  // each block; read if the plan sums weights before the draw. `memory`: the thread's scratch, in
  // which `scratch` places the arrays.
  RowDraw(const SamplingBatch& batch, int64_t row, const Candidates& first, double* sums,
          const DrawScratch& scratch, uint8_t* memory);

  // Returns the token. Call it once per row: it may overwrite the sums.
  int32_t Draw();

  float max() const { return row_weights_.max; }
  // The sum of the weights of all columns. Pre: the plan is windowed, the row valid.
  double mass() const { return mass_; }

  // Returns `draft`, which was drawn from the distribution q [cols], if it is accepted, otherwise a
  // token drawn from max(p - q, 0), where p is the row's distribution. Call it once per row.
  int32_t Verify(int32_t draft, const float* q);

  // Writes -inf to the columns of the row that the filters drop.
  void Mask(float* x);

 private:
  Kept Filter();
  Kept FilterCandidates();
  Kept FilterNucleus();
  Kept FilterWindowed();
  void SumWindowed();
  bool FindFewestReaching(int64_t k, double mass, Candidates* from) const;
  bool FindFewestReachingAmong(Candidates* from, double mass) const;
  Kept FromNucleus(Nucleus nucleus) const;
  void SumKept(const Cut& cut) const;
  Candidates Best(int64_t count) const;
  void WeighCandidates(const Candidates& from) const;
  Candidates DropBelowMinWeight(Candidates from) const;
  int32_t DrawFromKept(const Kept& kept);
  int32_t DrawFromAll(const Cut& cut, const Nucleus& nucleus) const;
  int32_t VerifyAmongCandidates(const Kept& kept, int32_t draft, const float* q);
  int32_t VerifyAmongAll(const Kept& kept, int32_t draft, const float* q);
  double SumKeptColumns(const Kept& kept);
  int64_t ResidualOfBlock(const Kept& kept, int64_t block, int64_t ties_before, double total,
                          const float* q) const;

  const SamplingBatch& batch_;
  const int64_t row_;
  const RowPlan plan_;
  const Candidates first_;
  double* sums_;
  const Candidates memory_;  // for more candidates than `first_` has
  float* const weights_;
  uint8_t* const rest_;
  WeightRow row_weights_;
  std::optional<NucleusSearch> search_;  // if the plan is windowed, and the row has a window
  double mass_ = 0;
};

}  // namespace riffle::sampling
