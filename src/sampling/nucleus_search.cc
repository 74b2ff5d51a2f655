#include "sampling/nucleus_search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace riffle::sampling {

NucleusSearch::NucleusSearch(const SamplingBatch& batch, const WeightRow& row,
                             const DrawScratch& scratch, uint8_t* memory)
    : batch_(batch),
      row_(row),
      all_(scratch.block_sums.At(memory)),
      above_(scratch.block_above.At(memory)),
      begin_(scratch.block_begin.At(memory)),
      values_(scratch.window.At(memory)),
      columns_(scratch.columns.At(memory)),
      rest_(scratch.rest.At(memory)) {
  HWY_DASSERT(batch.logits.cols >= kMinWindowed);
}

// Sums the blocks and keeps the columns in the window. False if these are too many. If `may_leave`,
// stops before a block whose columns show that the estimate is wrong. *blocks: how many are summed.
bool NucleusSearch::SumWindow(const WindowEstimate& window, bool may_leave, int64_t* blocks) {
  constexpr double kUnforeseen = 1.5;  // times the estimated mass
  double all = 0;
  begin_[0] = 0;
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    const int64_t from = batch_.BlockBegin(block);
    const int64_t to = batch_.BlockEnd(block);
    if (begin_[block] + (to - from) + kWeightSlack > WindowRoom(batch_.logits.cols)) {
      return false;
    }
    const WindowSums sums =
        batch_.kernels.sum_window(row_, window, from, to, values_ + begin_[block]);
    max_ = std::max(max_, sums.max);
    all += sums.total;
    const bool foreseen =
        (sums.max - row_.max) * row_.scale <= kMaxAbovePivot && all <= kUnforeseen * window.mass;
    if (may_leave && !foreseen) {
      *blocks = block;
      return true;
    }
    all_[block] = sums.total;
    above_[block] = sums.above;
    begin_[block + 1] = begin_[block] + static_cast<int32_t>(sums.count);
  }
  *blocks = batch_.blocks;
  return true;
}

// Sums the blocks from `first` on (those before are summed already), and keeps the columns of all
// blocks that reach `low`. False if these are too many, or none.
bool NucleusSearch::SumAndKeepTop(float low, int64_t first) {
  is_few_ = true;
  begin_[0] = 0;
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    const int64_t from = batch_.BlockBegin(block);
    const int64_t to = batch_.BlockEnd(block);
    if (begin_[block] + (to - from) + kWeightSlack > kFewRoom) {
      return false;
    }
    float* const values = values_ + begin_[block];
    int32_t* const columns = columns_ + begin_[block];
    int64_t count = 0;
    if (block < first) {
      count = batch_.kernels.keep_top(row_, low, from, to, values, columns);
    } else {
      const WindowSums sums = batch_.kernels.sum_and_keep_top(row_, low, from, to, values, columns);
      max_ = std::max(max_, sums.max);
      all_[block] = sums.total;
      count = sums.count;
    }
    above_[block] = 0;
    begin_[block + 1] = begin_[block] + static_cast<int32_t>(count);
  }
  return begin_[batch_.blocks] > 0;
}

bool NucleusSearch::SumRow(double share) {
  target_ = {share, 0};
  const WindowEstimate window =
      batch_.kernels.estimate_window(row_, batch_.logits.cols, target_, rest_);
  if (!std::isfinite(window.pivot)) {
    return false;
  }
  row_.max = window.pivot;
  max_ = -std::numeric_limits<float>::infinity();
  int64_t blocks = 0;
  if (!window.few && !SumWindow(window, /*may_leave=*/true, &blocks)) {
    return false;
  }
  if (blocks < batch_.blocks && !SumAndKeepTop(window.few ? window.low : window.few_low, blocks)) {
    return false;
  }
  const double factor = std::exp2((static_cast<double>(row_.max) - static_cast<double>(max_)) *
                                  static_cast<double>(row_.scale));
  row_.max = max_;
  if (!std::isfinite(max_)) {
    return false;
  }
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    all_[block] *= factor;
    above_[block] *= factor;
    target_.mass += all_[block];
  }
  // sum_and_keep_top left the kept columns out of its sums; SumWindow, in the blocks before, did
  // not.
  if (const int64_t first = begin_[blocks], kept = begin_[batch_.blocks] - first;
      blocks < batch_.blocks && kept > 0) {
    target_.mass += batch_.kernels.sum_weights(KeptRow(), nullptr, first, first + kept);
  }
  return std::isfinite(target_.mass) && target_.mass > 0;
}

// The columns kept by the pass, as a row of f32.
WeightRow NucleusSearch::KeptRow() const {
  WeightRow values = row_;
  values.x = reinterpret_cast<const uint8_t*>(values_);
  values.dtype = DType::kF32;
  return values;
}

bool NucleusSearch::TryFindInWindow() {
  const int64_t count = begin_[batch_.blocks];
  const double mass = target_.share * target_.mass;
  const double above = std::accumulate(above_, above_ + batch_.blocks, 0.0);
  if (count == 0 || above >= mass) {
    return false;
  }
  // A margin for rounding: find_nucleus, which adds in another order, must reach the mass too.
  constexpr double kMargin = 1e-6;
  const double sum = batch_.kernels.sum_weights(KeptRow(), nullptr, 0, count);
  if (above + sum * (1 - kMargin) < mass) {
    return false;
  }
  nucleus_ = batch_.kernels.find_nucleus(KeptRow(), count, above, mass, rest_);
  in_window_ = true;
  return true;
}

int64_t NucleusSearch::FindBest(const Candidates& out) const {
  if (!in_window_ || !is_few_ || CountColumns() > kNucleusSteps[1]) {
    return 0;
  }
  topk::RowTask task;
  task.x = values_;
  task.dtype = DType::kF32;
  task.n = begin_[batch_.blocks];
  // Two more than needed: the draw adds in another order, and may need more to reach the mass.
  task.k = std::min({CountColumns() + 2, task.n, kNucleusSteps[1]});
  task.indices = out.indices;
  topk::Kernels(DType::kF32).row(task, rest_);
  const size_t element = batch_.element;
  for (int64_t i = 0; i < task.k; ++i) {
    const int32_t column = columns_[out.indices[i]];
    out.indices[i] = column;
    std::memcpy(out.values + static_cast<size_t>(i) * element,
                row_.x + static_cast<size_t>(column) * element, element);
  }
  return task.k;
}

size_t NucleusSearch::FindBestScratch() {
  topk::RowTask task;
  task.dtype = DType::kF32;
  task.n = kFewRoom;
  task.k = kNucleusSteps[1];
  return topk::BucketMaximaScratch(task);
}

void NucleusSearch::FindAnywhere() {
  is_few_ = false;
  const int64_t cols = batch_.logits.cols;
  const WindowEstimate window = batch_.kernels.estimate_window(row_, cols, target_, rest_);
  int64_t blocks = 0;
  if (!std::isfinite(window.pivot) || !SumWindow(window, /*may_leave=*/false, &blocks) ||
      !TryFindInWindow()) {
    nucleus_ = batch_.kernels.find_nucleus(row_, cols, 0, target_.share * target_.mass, rest_);
  }
}

int64_t NucleusSearch::CountColumns() const {
  HWY_DASSERT(in_window_ && is_few_);
  const float threshold = nucleus_.threshold;
  return nucleus_.ties + std::count_if(values_, values_ + begin_[batch_.blocks],
                                       [=](float value) { return value > threshold; });
}

bool NucleusSearch::SumBlocks(double* sums) const {
  if (!in_window_) {
    return false;
  }
  const Cut cut{nucleus_.threshold, 0};
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    sums[block] = above_[block];
    if (begin_[block] < begin_[block + 1]) {
      sums[block] += batch_.kernels.sum_weights(KeptRow(), &cut, begin_[block], begin_[block + 1]);
    }
  }
  return true;
}

}  // namespace riffle::sampling
