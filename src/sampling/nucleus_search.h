// The search for a row's nucleus with one pass over the row.
#pragma once

#include <cstdint>

#include "sampling/sampling_batch.h"

namespace riffle::sampling {

// One pass sums the weights of a row, finds its maximum and sums what lies above a window, in which
// the last column of the nucleus is thought to be; only the columns in the window are looked at
// again. The window is estimated from some of the columns. Until the maximum is known, weights are
// relative to a pivot. Where the estimate finds few columns above the end of the nucleus, or the
// pass meets columns that it has not foreseen, the pass keeps all columns above a value with their
// numbers instead, and the best of them are the nucleus. If the nucleus ends elsewhere, a second
// window is made for the mass that is known by then; if it fails too, the whole row is searched.
// All of it is a function of the row alone, so the sums' rounding is too.
class NucleusSearch {
 public:
  // `memory`: the thread's scratch, in which `scratch` places the arrays. Pre: cols >=
  // kMinWindowed; the row has a finite scale and a unit of 1. row.max is not read.
  NucleusSearch(const SamplingBatch& batch, const WeightRow& row, const DrawScratch& scratch,
                uint8_t* memory);

  // Sums the row, for a nucleus that has `share` of the mass. False if that cannot be done so,
  // as for a row with a NaN or +inf, or with too many columns in the window.
  bool SumRow(double share);
  float max() const { return row_.max; }
  double mass() const { return target_.all; }  // relative to the maximum

  // Finds the nucleus of mass share * mass(). FindInWindow is the quick way, after SumRow, and
  // false if the nucleus does not end in the window; Find is for then.
  bool FindInWindow();
  void Find();
  const Nucleus& nucleus() const { return nucleus_; }

  // Finds the best columns, in their order, if the window has kept them all and they are no more
  // than kNucleusSteps[1]. Returns how many: at least those of the nucleus, or 0 if they are not
  // known.
  int64_t FindBest(const Candidates& out) const;
  static size_t FindBestScratch();  // bytes of DrawScratch::rest
  // The weight of the nucleus above its threshold in each block. False if that is not known,
  // because no window held its end.
  bool SumBlocks(double* sums) const;

 private:
  // How far a column may be above the pivot, as a power of two of its weight: each such power costs
  // a rounding of the weight in its last bits.
  static constexpr float kMaxAbovePivot = 4;

  bool SumWindow(const WindowEstimate& window, bool may_leave, int64_t* blocks);
  bool SumFew(float low, int64_t first);
  WeightRow Values() const;
  // How many columns the nucleus has. Pre: it ends in the window, which is_few_.
  int64_t CountColumns() const;

  const SamplingBatch& batch_;
  WeightRow row_;           // max: the pivot at first
  double* const all_;       // [blocks]
  double* const above_;     // [blocks], above the window
  int32_t* const begin_;    // [blocks + 1], of the block's values
  float* const values_;     // in the window, of all blocks
  int32_t* const columns_;  // of the values, if is_few_
  uint8_t* const rest_;
  WindowTarget target_;
  float max_ = 0;
  bool is_few_ = false;     // the window has few columns, and none is above it
  bool in_window_ = false;  // where the nucleus ends
  Nucleus nucleus_;
};

}  // namespace riffle::sampling
