// The verification of one draft.
#include <algorithm>

#include "core/element.h"
#include "sampling/draw.h"
#include "sampling/prefix.h"

namespace riffle::sampling {

// With draft probabilities q and the distribution p that the filters leave, draft d is accepted if
// u < p(d) / q(d); u is independent of the random number that a draw takes.
int32_t RowDraw::Verify(int32_t draft, const float* q) {
  const Kept kept = Filter();
  return kept.candidates.count > 0 ? VerifyAmongCandidates(kept, draft, q)
                                   : VerifyAmongAll(kept, draft, q);
}

int32_t RowDraw::VerifyAmongCandidates(const Kept& kept, int32_t draft, const float* q) {
  const Candidates& from = kept.candidates;
  const double total = Sum(weights_, from.count);
  const double u = batch_.Random(row_, 1);
  const int32_t* const found = std::find(from.indices, from.indices + from.count, draft);
  if (found != from.indices + from.count &&
      u * static_cast<double>(q[draft]) * total <
          static_cast<double>(weights_[found - from.indices])) {
    return draft;
  }
  double left = 0;
  for (int64_t i = 0; i < from.count; ++i) {
    const double share = static_cast<double>(weights_[i]) / total;
    const double above = share - static_cast<double>(q[from.indices[i]]);
    left += above > 0 ? above : 0;
  }
  if (!(left > 0)) {  // p equals q up to rounding: draws from p
    return from.indices[IndexAtMass(weights_, from.count, batch_.Random(row_) * total)];
  }
  for (int64_t i = 0; i < from.count; ++i) {
    const double share = static_cast<double>(weights_[i]) / total;
    weights_[i] =
        static_cast<float>(std::max(share - static_cast<double>(q[from.indices[i]]), 0.0));
  }
  return from
      .indices[IndexAtMass(weights_, from.count, batch_.Random(row_) * Sum(weights_, from.count))];
}

// The weight of all columns that are kept.
double RowDraw::SumKeptColumns(const Kept& kept) {
  if (plan_.path == SamplePath::kNucleus) {
    SumKept(kept.cut);
  }
  double total =
      static_cast<double>(kept.nucleus.ties) * static_cast<double>(kept.nucleus.tie_weight);
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    total += sums_[block];
  }
  return total;
}

// Sets weights_ to max(p - q, 0) for the columns of a block. Returns how many ties of the nucleus
// there are up to the end of the block.
int64_t RowDraw::ResidualOfBlock(const Kept& kept, int64_t block, int64_t ties_before, double total,
                                 const float* q) const {
  const int64_t begin = batch_.BlockBegin(block);
  const int64_t end = batch_.BlockEnd(block);
  batch_.kernels.weights(row_weights_, &kept.cut, begin, end, weights_);
  int64_t ties = ties_before;
  for (int64_t i = begin; i < end; ++i) {
    float weight = weights_[i - begin];
    if (ties < kept.nucleus.ties &&
        core::LoadElement(batch_.logits.dtype,
                          batch_.RowData(row_) + static_cast<size_t>(i) * batch_.element) ==
            kept.nucleus.threshold) {
      weight = kept.nucleus.tie_weight;
      ++ties;
    }
    const double above = static_cast<double>(weight) / total - static_cast<double>(q[i]);
    weights_[i - begin] = above > 0 ? static_cast<float>(above) : 0;
  }
  return ties;
}

int32_t RowDraw::VerifyAmongAll(const Kept& kept, int32_t draft, const float* q) {
  const double total = SumKeptColumns(kept);
  const uint8_t* const row = batch_.RowData(row_);
  const auto value_at = [&](int64_t i) {
    return core::LoadElement(batch_.logits.dtype, row + static_cast<size_t>(i) * batch_.element);
  };
  float weight[1 + kWeightSlack];
  batch_.kernels.weights(row_weights_, &kept.cut, draft, draft + 1, weight);
  if (kept.nucleus.ties > 0 && value_at(draft) == kept.nucleus.threshold) {
    int64_t before = 0;
    for (int64_t i = 0; i < draft; ++i) {
      before += value_at(i) == kept.nucleus.threshold ? 1 : 0;
    }
    weight[0] = before < kept.nucleus.ties ? kept.nucleus.tie_weight : 0;
  }
  if (batch_.Random(row_, 1) * static_cast<double>(q[draft]) * total <
      static_cast<double>(weight[0])) {
    return draft;
  }
  double left = 0;
  int64_t last = 0;
  for (int64_t block = 0, ties = 0; block < batch_.blocks; ++block) {
    ties = ResidualOfBlock(kept, block, ties, total, q);
    sums_[block] = Sum(weights_, batch_.BlockEnd(block) - batch_.BlockBegin(block));
    left += sums_[block];
    last = sums_[block] > 0 ? block : last;
  }
  if (!(left > 0)) {  // p equals q up to rounding
    return draft;
  }
  const double place = batch_.Random(row_) * left;
  double before = 0;
  int64_t ties = 0;
  for (int64_t block = 0;; ++block) {
    ties = ResidualOfBlock(kept, block, ties, total, q);
    if (block == last || before + sums_[block] > place) {
      const int64_t begin = batch_.BlockBegin(block);
      const int64_t count = batch_.BlockEnd(block) - begin;
      return static_cast<int32_t>(begin + IndexAtMass(weights_, count, place - before));
    }
    before += sums_[block];
  }
}

}  // namespace riffle::sampling
