#include "sampling/sampling_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "sampling/sampling_kernels.h"

namespace riffle::sampling {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Infinite for the lowest temperatures, so that only the best columns keep a weight.
float Scale(float temperature, float unit) {
  const double scale = kLog2E / static_cast<double>(temperature) / static_cast<double>(unit);
  constexpr double kMax = std::numeric_limits<float>::max();
  return scale > kMax ? std::numeric_limits<float>::infinity() : static_cast<float>(scale);
}

// At the highest temperatures even logits farther apart than the largest f32 have different
// weights, and the scale itself would be subnormal. Logits are then measured in units of 2^64.
float Unit(float temperature) { return temperature < 0x1p100f ? 1.0f : 0x1p-64f; }

}  // namespace

const float kRawScale = Scale(1, 1);

bool RowPlan::sums_are_raw() const { return scale == kRawScale && unit == 1 && min_weight == 0; }

RowPlan PlanRow(const RowParameters& parameters, int64_t n, bool draws) {
  RowPlan plan;
  if (parameters.temperature == 0) {
    return plan;
  }
  plan.unit = Unit(parameters.temperature);
  plan.scale = Scale(parameters.temperature, plan.unit);
  plan.top_p = parameters.top_p;
  plan.min_weight = parameters.min_p;
  const bool limited = parameters.top_k > 0 && parameters.top_k < n;
  if (limited || n <= kMaxFirst) {
    plan.path = SamplePath::kCandidates;
    plan.k = limited ? parameters.top_k : n;
    plan.num_first = plan.k <= kMaxFirst ? plan.k : 1;
  } else if (parameters.top_p < 1) {
    plan.path = SamplePath::kNucleus;
    plan.windowed = n >= kMinWindowed && plan.unit == 1 && std::isfinite(plan.scale);
    plan.sums = !plan.windowed;
    plan.num_first = plan.windowed ? 1 : kNucleusSteps[0];
  } else {
    plan.path = SamplePath::kAll;
    plan.sums = draws;
  }
  return plan;
}

FirstScratch PlanFirst(int64_t rows, int64_t width, size_t element, size_t begin) {
  HWY_DASSERT(rows > 0 && width > 0);
  core::ScratchLayout layout(begin);
  FirstScratch first;
  first.values = layout.Place<uint8_t>(rows * width * static_cast<int64_t>(element));
  first.indices = layout.Place<int32_t>(rows * width);
  first.counts = layout.Place<int32_t>(rows);
  first.tokens = layout.Place<int32_t>(rows);
  first.logprobs = layout.Place<float>(rows);
  first.maxima = layout.Place<float>(rows);
  first.bytes = layout.bytes();
  return first;
}

DrawScratch PlanDraw(int64_t candidates, size_t element, size_t rest, int64_t windowed) {
  core::ScratchLayout layout;
  DrawScratch draw;
  draw.values = layout.Place<uint8_t>(candidates * static_cast<int64_t>(element));
  draw.indices = layout.Place<int32_t>(candidates);
  draw.weights = layout.Place<float>(std::max(candidates, kSumBlock) + kWeightSlack);
  draw.rest = layout.Place<uint8_t>(static_cast<int64_t>(rest));
  if (windowed > 0) {
    const int64_t blocks = SumBlocks(windowed);
    draw.kept_sums = layout.Place<double>(blocks);
    draw.block_sums = layout.Place<double>(blocks);
    draw.block_above = layout.Place<double>(blocks);
    draw.block_begin = layout.Place<int32_t>(blocks + 1);
    draw.window = layout.Place<float>(std::max(WindowRoom(windowed), kFewRoom));
    draw.columns = layout.Place<int32_t>(kFewRoom);
  }
  draw.bytes = layout.bytes();
  return draw;
}

SumsLayout PlanSums(int64_t rows, int64_t blocks) {
  HWY_DASSERT(rows > 0 && blocks > 0);
  core::ScratchLayout layout;
  SumsLayout sums;
  sums.sums = layout.Place<double>(rows * blocks);
  sums.raw = layout.Place<double>(rows * blocks);
  sums.bytes = layout.bytes();
  return sums;
}

}  // namespace riffle::sampling
