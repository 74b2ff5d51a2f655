#include "sampling/nucleus_search.h"

#include <algorithm>
#include <cstring>

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

// Sums the row and, as long as there is room for its values, the window.
void NucleusSearch::SumWith(const WindowEstimate& window) {
  has_window_ = window.low <= window.high;
  is_few_ = window.few;
  const int64_t room = is_few_ ? kFewRoom : WindowRoom(batch_.logits.cols);
  above_count_ = 0;
  begin_[0] = 0;
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    const int64_t from = batch_.BlockBegin(block);
    const int64_t to = batch_.BlockEnd(block);
    has_window_ = has_window_ && begin_[block] + (to - from) + kWeightSlack <= room;
    if (!has_window_) {
      all_[block] = batch_.kernels.sum_weights(row_, nullptr, from, to);
      continue;
    }
    float* const values = values_ + begin_[block];
    const WindowSums sums = is_few_ ? batch_.kernels.sum_few(row_, window.low, from, to, values,
                                                             columns_ + begin_[block])
                                    : batch_.kernels.sum_window(row_, window, from, to, values);
    all_[block] = sums.all;
    above_[block] = sums.above;
    above_count_ += sums.above_count;
    begin_[block + 1] = begin_[block] + static_cast<int32_t>(sums.count);
  }
}

double NucleusSearch::SumRow(double share, float top, double top_mass) {
  target_ = {share, 0, top_mass, top};
  SumWith(batch_.kernels.estimate_window(row_, batch_.logits.cols, target_, rest_));
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    target_.all += all_[block];
  }
  mass_ = share * target_.all;
  return target_.all;
}

bool NucleusSearch::FindInWindow() {
  const int64_t count = has_window_ ? begin_[batch_.blocks] : 0;
  if (count == 0) {
    return false;
  }
  double above = 0;
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    above += above_[block];
  }
  if (above >= mass_) {
    return false;
  }
  WeightRow values = row_;
  values.x = reinterpret_cast<const uint8_t*>(values_);
  values.dtype = DType::kF32;
  // Enough, or too little, that no order of the additions makes less or more of it than the mass.
  constexpr double kMargin = 1e-6;
  const double sum = batch_.kernels.sum_weights(values, nullptr, 0, count);
  if (above + sum * (1 - kMargin) < mass_) {
    is_many_ = is_few_ && count >= kNucleusSteps[1] && sum * (1 + kMargin) < mass_;
    return false;
  }
  nucleus_ = batch_.kernels.find_nucleus(values, count, above, mass_, rest_);
  in_window_ = true;
  is_many_ = CountColumns() > kNucleusSteps[1];
  return true;
}

int64_t NucleusSearch::FindBest(const Candidates& out) const {
  if (!in_window_ || !is_few_ || is_many_) {
    return 0;
  }
  topk::RowTask task;
  task.x = values_;
  task.dtype = DType::kF32;
  task.n = begin_[batch_.blocks];
  // Two more than are needed, should the order of the additions matter.
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

void NucleusSearch::Find() {
  target_.top_mass = 0;  // the best columns are known not to be enough
  SumWith(batch_.kernels.estimate_window(row_, batch_.logits.cols, target_, rest_));
  if (!FindInWindow()) {
    nucleus_ = batch_.kernels.find_nucleus(row_, batch_.logits.cols, 0, mass_, rest_);
  }
}

int64_t NucleusSearch::CountColumns() const {
  HWY_DASSERT(in_window_);
  const float threshold = nucleus_.threshold;
  return above_count_ + nucleus_.ties +
         std::count_if(values_, values_ + begin_[batch_.blocks],
                       [=](float value) { return value > threshold; });
}

bool NucleusSearch::SumBlocks(double* sums) const {
  if (!in_window_) {
    return false;
  }
  WeightRow values = row_;
  values.x = reinterpret_cast<const uint8_t*>(values_);
  values.dtype = DType::kF32;
  const Cut cut{nucleus_.threshold, 0};
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    sums[block] = above_[block];
    if (begin_[block] < begin_[block + 1]) {
      sums[block] += batch_.kernels.sum_weights(values, &cut, begin_[block], begin_[block + 1]);
    }
  }
  return true;
}

}  // namespace riffle::sampling
