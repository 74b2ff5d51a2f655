// The search for a row's nucleus with one pass over the row.
#pragma once

#include <cstdint>

#include "sampling/sampling_batch.h"

namespace riffle::sampling {

// One pass sums the weights of a row and, for a window in which the last column of the nucleus is
// thought to be, what lies above it; only the columns in the window are looked at again. The window
// is estimated from some of the columns. If the nucleus ends elsewhere, a second window is made for
// the mass that is known by then; if it fails too, the whole row is searched. All of it is a
// function of the row alone, so the sums' rounding is too.
class NucleusSearch {
 public:
  // `memory`: the thread's scratch, in which `scratch` places the arrays. Pre: cols >=
  // kMinWindowed.
  NucleusSearch(const SamplingBatch& batch, const WeightRow& row, const DrawScratch& scratch,
                uint8_t* memory);

  // Sums the row, whose best columns down to `top` have `top_mass`, for a nucleus that has `share`
  // of the mass. Returns the mass of the row: the sum, in order, of the blocks' sums.
  double SumRow(double share, float top, double top_mass);

  // Finds the nucleus of mass share * all. FindInWindow is the quick way, after SumRow, and false
  // if the nucleus does not end in the window; Find is for then.
  bool FindInWindow();
  void Find();
  const Nucleus& nucleus() const { return nucleus_; }

  // How many columns the nucleus has. Pre: FindInWindow.
  int64_t CountColumns() const;
  // The weight of the nucleus above its threshold in each block. False if that is not known,
  // because no window held its end.
  bool SumBlocks(double* sums) const;

  // Of all blocks: the weight of every column, with the bits of sum_weights.
  const double* block_sums() const { return all_; }

 private:
  void SumWith(const WindowEstimate& window);

  const SamplingBatch& batch_;
  const WeightRow row_;
  double* const all_;     // [blocks]
  double* const above_;   // [blocks], above the window
  int32_t* const begin_;  // [blocks + 1], of the block's values
  float* const values_;   // in the window, of all blocks
  const int64_t room_;    // for values
  uint8_t* const rest_;
  WindowTarget target_;
  double mass_ = 0;
  int64_t above_count_ = 0;
  bool has_window_ = false;
  bool in_window_ = false;  // where the nucleus ends
  Nucleus nucleus_;
};

}  // namespace riffle::sampling
