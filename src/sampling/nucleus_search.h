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

  // Whether the nucleus is known to have more than kNucleusSteps[1] columns.
  bool is_many() const { return is_many_; }
  // Finds the best columns, in their order, if FindInWindow has kept them all and they are no more
  // than kNucleusSteps[1]. Returns how many: at least those of the nucleus, or 0 if they are not
  // known.
  int64_t FindBest(const Candidates& out) const;
  static size_t FindBestScratch();  // bytes of DrawScratch::rest
  // The weight of the nucleus above its threshold in each block. False if that is not known,
  // because no window held its end.
  bool SumBlocks(double* sums) const;

  // Of all blocks: the weight of every column, with the bits of sum_weights.
  const double* block_sums() const { return all_; }

 private:
  void SumWith(const WindowEstimate& window);
  // How many columns the nucleus has. Pre: it ends in the window.
  int64_t CountColumns() const;

  const SamplingBatch& batch_;
  const WeightRow row_;
  double* const all_;       // [blocks]
  double* const above_;     // [blocks], above the window
  int32_t* const begin_;    // [blocks + 1], of the block's values
  float* const values_;     // in the window, of all blocks
  int32_t* const columns_;  // of the values, if is_few_
  uint8_t* const rest_;
  WindowTarget target_;
  double mass_ = 0;
  int64_t above_count_ = 0;
  bool has_window_ = false;
  bool is_few_ = false;     // the window has few columns, and none is above it
  bool is_many_ = false;    // the nucleus has many
  bool in_window_ = false;  // where the nucleus ends
  Nucleus nucleus_;
};

}  // namespace riffle::sampling
