// The search for a row's nucleus with one pass over the row.
#pragma once

#include <cstdint>

#include "sampling/sampling_batch.h"

namespace riffle::sampling {

// One pass sums the weights of a row, finds its maximum, sums the weights above a window and keeps
// the columns in it; only those are looked at again. The window is where a sample of the columns
// suggests that the nucleus ends. Until the maximum is known, weights are relative to a pivot. If
// the sample has few columns above the end of the nucleus, or the pass meets weights much larger
// than estimated, the pass instead keeps all columns above a value, with their numbers, and the
// nucleus is the best of them. If the nucleus ends elsewhere, a second window is estimated from the
// mass, which is known by then; if that fails too, the whole row is searched. Each of these steps
// depends on the row alone, so the rounding of the sums does too.
class NucleusSearch {
 public:
  // `memory`: the thread's scratch, in which `scratch` places the arrays. Pre: cols >=
  // kMinWindowed; the row has a finite scale and a unit of 1. row.max is not read.
  NucleusSearch(const SamplingBatch& batch, const WeightRow& row, const DrawScratch& scratch,
                uint8_t* memory);

  // Sums the row, for a nucleus that has `share` of the mass. False if the pass fails: the row has
  // a NaN or +inf, or too many columns are in the window.
  bool SumRow(double share);
  float max() const { return row_.max; }
  double mass() const { return target_.mass; }  // relative to the maximum

  // Find the nucleus of mass share * mass(), after SumRow. TryFindInWindow searches the columns
  // kept by the pass and returns false if the nucleus does not end there; call FindAnywhere then.
  bool TryFindInWindow();
  void FindAnywhere();
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
  // log2 of the largest weight, relative to the pivot, that the pass accepts: the rounding error of
  // a weight grows with the distance from the pivot.
  static constexpr float kMaxAbovePivot = 4;

  bool SumWindow(const WindowEstimate& window, bool may_leave, int64_t* blocks);
  bool SumAndKeepTop(float low, int64_t first);
  WeightRow KeptRow() const;
  // How many columns the nucleus has. Pre: it ends in the window, which is_few_.
  int64_t CountColumns() const;

  const SamplingBatch& batch_;
  WeightRow row_;           // max: the pivot at first
  double* const all_;       // [blocks]
  double* const above_;     // [blocks], above the window
  int32_t* const begin_;    // [blocks + 1], where a block's values begin in values_
  float* const values_;     // the columns in the window, of all blocks
  int32_t* const columns_;  // of the values, if is_few_
  uint8_t* const rest_;
  WindowTarget target_;
  float max_ = 0;
  bool is_few_ = false;     // the window has few columns, and none is above it
  bool in_window_ = false;  // the nucleus ends in the window
  Nucleus nucleus_;
};

}  // namespace riffle::sampling
