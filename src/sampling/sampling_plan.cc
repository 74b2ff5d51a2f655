#include "sampling/sampling_plan.h"

#include <algorithm>
#include <limits>

namespace riffle::sampling {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Never zero, so that a difference of logits times it is no NaN; infinite for the least
// temperatures, which leaves the best columns alone.
float Scale(float temperature) {
  const double scale = kLog2E / static_cast<double>(temperature);
  constexpr double kMax = std::numeric_limits<float>::max();
  return scale > kMax ? std::numeric_limits<float>::infinity()
                      : std::max(static_cast<float>(scale), std::numeric_limits<float>::min());
}

}  // namespace

const float kRawScale = Scale(1);

bool RowPlan::raw() const { return scale == kRawScale && min_weight == 0; }

RowPlan PlanRow(const RowParameters& parameters, int64_t n) {
  RowPlan plan;
  if (parameters.temperature == 0) {
    return plan;
  }
  plan.scale = Scale(parameters.temperature);
  plan.top_p = parameters.top_p;
  plan.min_weight = parameters.min_p;
  const bool limited = parameters.top_k > 0 && parameters.top_k < n;
  if (limited || n <= kMaxFirst) {
    plan.path = SamplePath::kCandidates;
    plan.k = limited ? parameters.top_k : n;
    plan.first = plan.k <= kMaxFirst ? plan.k : 1;
  } else if (parameters.top_p < 1) {
    plan.path = SamplePath::kNucleus;
    plan.first = kNucleusSteps[0];
  } else {
    plan.path = SamplePath::kAll;
  }
  return plan;
}

}  // namespace riffle::sampling
