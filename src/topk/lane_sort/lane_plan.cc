#include "topk/lane_sort/lane_sort.h"

#include <algorithm>
#include <limits>

#include "select/limits.h"
#include "topk/lane_sort/depth.h"
#include "topk/topk_kernels.h"

namespace riffle::topk {
namespace {

// A pass that keeps `depth` elements of each lane, and the probability that its certificate fails.
struct Step {
  int64_t depth;
  double fails;
};

// Depths worth trying: from the first that can certify to one that hardly ever fails, in steps that
// keep their number small; then doubled depths, up to the one that always certifies.
std::vector<Step> CandidateSteps(const DepthDistribution& depths, int64_t last) {
  constexpr double kUnlikely = 1e-9;
  constexpr int64_t kMaxSteps = 256;
  int64_t end = depths.first + 1;
  while (end < last && depths.Above(end - 1) > kUnlikely) {
    ++end;
  }
  std::vector<Step> steps;
  const int64_t stride = (end - depths.first) / kMaxSteps + 1;
  for (int64_t m = depths.first + 1; m < std::min(end, last); m += stride) {
    if (depths.Above(m - 1) < 1) {
      steps.push_back({m, depths.Above(m - 1)});
    }
  }
  for (int64_t m = end; m < last; m *= 2) {
    steps.push_back({m, depths.Above(m - 1)});
  }
  steps.push_back({last, 0});
  return steps;
}

// The steps with the smallest expected cost, which is the sum over steps of PassCost * P(the step
// before failed). The last step is always among them.
std::vector<int> Cheapest(const std::vector<Step>& steps) {
  const size_t count = steps.size();
  std::vector<double> rest(count, 0.0);  // the expected cost of what follows step i
  std::vector<size_t> next(count, count);
  size_t first = count - 1;
  double least = PassCost(steps.back().depth);
  for (size_t i = count - 1; i-- > 0;) {
    rest[i] = std::numeric_limits<double>::infinity();
    for (size_t j = i + 1; j < count; ++j) {
      const double cost = steps[i].fails * PassCost(steps[j].depth) + rest[j];
      if (cost < rest[i]) {
        rest[i] = cost;
        next[i] = j;
      }
    }
    const double cost = PassCost(steps[i].depth) + rest[i];
    if (cost < least) {
      least = cost;
      first = i;
    }
  }
  std::vector<int> schedule;
  for (size_t i = first; i < count; i = next[i]) {
    schedule.push_back(static_cast<int>(steps[i].depth));
  }
  return schedule;
}

}  // namespace

// The time of one row of 201088, k = 64, 128 lanes, on one thread of an AVX-512 machine, in us:
//   depth      2     5     9    17
//   bf16    12.4  13.2  14.2  16.1
//   f32     22.8  24.2  26.7  28.9
// Few elements pass the floor, so keeping more of a lane costs little.
double PassCost(int64_t depth) { return 1.0 + 0.02 * static_cast<double>(depth); }

int64_t LastDepth(int64_t n, int64_t k, int64_t lanes) {
  return std::min<int64_t>(std::min(k, (n + lanes - 1) / lanes) + 1,
                           std::numeric_limits<int>::max());
}

LaneScratch PlanLanes(const RowTask& task, const LaneOptions& options) {
  HWY_DASSERT(0 < task.k && task.k <= task.n && options.lanes > 0);
  constexpr auto kSlack = static_cast<int64_t>(select::kSlack);
  LaneScratch scratch;
  scratch.last_depth = LastDepth(task.n, task.k, options.lanes);
  const int64_t kept = scratch.last_depth * options.lanes;
  const auto element = static_cast<int64_t>(SizeOf(task.dtype));
  core::ScratchLayout layout;
  scratch.row.keys = layout.Place<uint8_t>((kept + kSlack) * element);
  scratch.row.indices = layout.Place<int32_t>(kept + kSlack);
  scratch.row.ties = layout.Place<int32_t>(task.k + kSlack);
  scratch.row.pairs = layout.Place<uint64_t>(2 * kept);
  scratch.index_keys = layout.Place<int32_t>(kept + kSlack);
  scratch.positions = layout.Place<int32_t>(kept + kSlack);
  scratch.sorted_keys = layout.Place<uint8_t>((kept + kSlack) * element);
  scratch.sorted_indices = layout.Place<int32_t>(kept + kSlack);
  scratch.bytes = layout.bytes();
  return scratch;
}

size_t LaneSortScratch(const RowTask& task, const LaneOptions& options) {
  return PlanLanes(task, options).bytes;
}

std::vector<int> PlanDepths(int64_t n, int64_t k, int lanes) {
  return Cheapest(CandidateSteps(Depths(k, lanes), LastDepth(n, k, lanes)));
}

}  // namespace riffle::topk
