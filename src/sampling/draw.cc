#include "sampling/draw.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/element.h"
#include "sampling/prefix.h"

namespace riffle::sampling {

RowDraw::RowDraw(const SamplingBatch& batch, int64_t row, const Candidates& first, double* sums,
                 const DrawScratch& scratch, uint8_t* memory)
    : batch_(batch),
      row_(row),
      plan_(batch.Plan(row)),
      first_(first),
      sums_(sums),
      memory_{scratch.values.At(memory), scratch.indices.At(memory), 0},
      weights_(scratch.weights.At(memory)),
      rest_(scratch.rest.At(memory)),
      row_weights_{batch.RowData(row), batch.logits.dtype, 0, plan_.scale, plan_.unit} {
  HWY_DASSERT(first.count == plan_.num_first);
  if (plan_.windowed) {
    sums_ = scratch.kept_sums.At(memory);
    search_.emplace(batch, row_weights_, scratch, memory);
    SumWindowed();
  } else {
    row_weights_.max = core::LoadElement(batch.logits.dtype, first.values);
  }
}

// Sums the row and finds its maximum: in one pass if the row's window holds, otherwise in two.
void RowDraw::SumWindowed() {
  if (search_->SumRow(static_cast<double>(plan_.top_p))) {
    row_weights_.max = search_->max();
    mass_ = search_->mass();
    return;
  }
  search_.reset();
  batch_.FindBest(row_, first_, rest_);
  row_weights_.max = core::LoadElement(batch_.logits.dtype, first_.values);
  if (std::isnan(row_weights_.max) || row_weights_.max == -std::numeric_limits<float>::infinity()) {
    return;
  }
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    sums_[block] = batch_.kernels.sum_weights(row_weights_, nullptr, batch_.BlockBegin(block),
                                              batch_.BlockEnd(block));
    mass_ += sums_[block];
  }
}

// The row's best `count` columns: from those found first if they suffice, else selected now.
Candidates RowDraw::Best(int64_t count) const {
  Candidates best = count <= plan_.num_first ? first_ : memory_;
  best.count = count;
  if (count > plan_.num_first) {
    batch_.FindBest(row_, best, rest_);
  }
  return best;
}

void RowDraw::WeighCandidates(const Candidates& from) const {
  WeightRow weights = row_weights_;
  weights.x = from.values;
  batch_.kernels.weights(weights, nullptr, 0, from.count, weights_);
}

// The weighed candidates without those below the plan's min_weight.
Candidates RowDraw::DropBelowMinWeight(Candidates from) const {
  int64_t kept = 1;
  while (kept < from.count && weights_[kept] >= plan_.min_weight) {
    ++kept;
  }
  from.count = kept;
  return from;
}

Kept RowDraw::FilterCandidates() {
  Candidates from = Best(plan_.k);
  WeighCandidates(from);
  if (plan_.top_p < 1) {
    const double mass = static_cast<double>(plan_.top_p) * Sum(weights_, plan_.k);
    from.count = std::min(from.count, PrefixLengthReaching(weights_, plan_.k, mass));
  }
  return {DropBelowMinWeight(from), {}, {}};
}

// Whether the row's k best columns reach `mass`. If so, *from has the fewest of them that do.
bool RowDraw::FindFewestReaching(int64_t k, double mass, Candidates* from) const {
  *from = Best(k);
  return FindFewestReachingAmong(from, mass);
}

// The same for the best columns that *from holds already.
bool RowDraw::FindFewestReachingAmong(Candidates* from, double mass) const {
  const int64_t count = from->count;
  WeighCandidates(*from);
  from->count = PrefixLengthReaching(weights_, count, mass);
  return from->count <= count;
}

Kept RowDraw::FromNucleus(Nucleus nucleus) const {
  if (nucleus.tie_weight < plan_.min_weight) {
    nucleus.ties = 0;
  }
  return {{}, {nucleus.threshold, plan_.min_weight}, nucleus};
}

Kept RowDraw::FilterNucleus() {
  double all = 0;
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    all += sums_[block];
  }
  const double mass = static_cast<double>(plan_.top_p) * all;
  for (const int64_t k : kNucleusSteps) {
    if (Candidates from; FindFewestReaching(k, mass, &from)) {
      return {DropBelowMinWeight(from), {}, {}};
    }
  }
  return FromNucleus(batch_.kernels.find_nucleus(row_weights_, batch_.logits.cols, 0, mass, rest_));
}

Kept RowDraw::FilterWindowed() {
  const bool in_window = search_->TryFindInWindow();
  // If the nucleus has few columns, draws from them in sorted order, best first.
  Candidates from = memory_;
  from.count = search_->FindBest(memory_);
  if (from.count > 0 && FindFewestReachingAmong(&from, static_cast<double>(plan_.top_p) * mass_)) {
    return {DropBelowMinWeight(from), {}, {}};
  }
  if (!in_window) {
    search_->FindAnywhere();
  }
  return FromNucleus(search_->nucleus());
}

Kept RowDraw::Filter() {
  switch (plan_.path) {
    case SamplePath::kGreedy:
      break;
    case SamplePath::kCandidates:
      return FilterCandidates();
    case SamplePath::kNucleus:
      return search_.has_value() ? FilterWindowed() : FilterNucleus();
    case SamplePath::kAll:
      return {{}, {-std::numeric_limits<float>::infinity(), plan_.min_weight}, {}};
  }
  weights_[0] = 1;
  return {Best(1), {}, {}};
}

// Draws from the columns that the cut keeps, in ascending order, followed by the nucleus's ties.
int32_t RowDraw::DrawFromAll(const Cut& cut, const Nucleus& nucleus) const {
  double above = 0;
  int64_t last = 0;
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    above += sums_[block];
    last = sums_[block] > 0 ? block : last;
  }
  const auto ties = static_cast<double>(nucleus.ties);
  const auto tie_weight = static_cast<double>(nucleus.tie_weight);
  const double place = batch_.Random(row_) * (above + ties * tie_weight);
  if (nucleus.ties > 0 && place >= above) {
    const double tie = std::min((place - above) / tie_weight, ties - 1);
    return static_cast<int32_t>(batch_.kernels.find_equal(
        row_weights_, batch_.logits.cols, nucleus.threshold, static_cast<int64_t>(tie)));
  }
  double before = 0;
  int64_t block = 0;
  for (; block < last && before + sums_[block] <= place; ++block) {
    before += sums_[block];
  }
  const int64_t begin = batch_.BlockBegin(block);
  const int64_t end = batch_.BlockEnd(block);
  batch_.kernels.weights(row_weights_, &cut, begin, end, weights_);
  return static_cast<int32_t>(begin + IndexAtMass(weights_, end - begin, place - before));
}

// Sums the columns that the cut of a nucleus keeps.
void RowDraw::SumKept(const Cut& cut) const {
  if (cut.min_weight == 0 && search_.has_value() && search_->SumBlocks(sums_)) {
    return;
  }
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    sums_[block] = batch_.kernels.sum_weights(row_weights_, &cut, batch_.BlockBegin(block),
                                              batch_.BlockEnd(block));
  }
}

int32_t RowDraw::DrawFromKept(const Kept& kept) {
  const Candidates& from = kept.candidates;
  if (from.count > 0) {
    const double place = batch_.Random(row_) * Sum(weights_, from.count);
    return from.indices[IndexAtMass(weights_, from.count, place)];
  }
  if (plan_.path == SamplePath::kNucleus) {
    SumKept(kept.cut);
  }
  return DrawFromAll(kept.cut, kept.nucleus);
}

int32_t RowDraw::Draw() { return DrawFromKept(Filter()); }

void RowDraw::Mask(float* x) {
  const bool every_column = plan_.path == SamplePath::kAll || plan_.k == batch_.logits.cols;
  if (every_column && plan_.top_p == 1 && plan_.min_weight == 0) {
    return;
  }
  auto [from, cut, nucleus] = Filter();
  if (from.count > 0) {
    // The candidates are all columns above the last one's value, and the first ties equal to it.
    const auto value = [&, values = from.values](int64_t i) {
      return core::LoadElement(batch_.logits.dtype,
                               values + static_cast<size_t>(i) * batch_.element);
    };
    cut.above = nucleus.threshold = value(from.count - 1);
    for (int64_t i = from.count; i > 0 && value(i - 1) == cut.above; --i) {
      ++nucleus.ties;
    }
  }
  batch_.kernels.mask(row_weights_, batch_.logits.cols, cut, nucleus, x);
}

}  // namespace riffle::sampling
