// The door of sampling: validate, plan, run.
#include "riffle/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/targets.h"
#include "riffle/topk.h"
#include "sampling/prefix.h"
#include "sampling/random.h"
#include "sampling/sampling_check.h"
#include "sampling/sampling_kernels.h"
#include "sampling/sampling_plan.h"
#include "topk/topk_kernels.h"

namespace riffle {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

template <typename T>
T Of(std::span<const T> list, int64_t row, T otherwise) {
  return list.empty() ? otherwise : list[list.size() == 1 ? 0 : static_cast<size_t>(row)];
}

// The best columns of a row, best first.
struct Candidates {
  uint8_t* values = nullptr;  // of the row's dtype
  int32_t* indices = nullptr;
  int64_t count = 0;
};

// One call. Lives through its three steps: the best columns of every row, by TopK; sums of weights
// of those rows that need them; the draw.
class Sampler {
 public:
  Sampler(const MatrixView& logits, const SampleOptions& options, bool logprobs)
      : logits_(logits),
        options_(options),
        logprobs_(logprobs),
        any_sums_(logprobs),
        element_(SizeOf(logits.dtype)),
        blocks_(sampling::SumBlocks(logits.cols)) {}

  void Run(std::span<int32_t> tokens, std::span<float> logprobs);

 private:
  // What a thread works in.
  struct Scratch {
    Candidates candidates;
    float* weights;
    uint8_t* rest;  // of TopK or FindNucleus
  };

  sampling::RowPlan Plan(int64_t row) const {
    return sampling::PlanRow({Of(options_.temperature, row, 1.0f), Of(options_.top_k, row, 0),
                              Of(options_.top_p, row, 1.0f), Of(options_.min_p, row, 0.0f)},
                             logits_.cols);
  }
  const uint8_t* RowData(int64_t row) const {
    return static_cast<const uint8_t*>(logits_.data) +
           row * logits_.row_stride * static_cast<int64_t>(element_);
  }
  Candidates First(int64_t row, int64_t count) const {
    return {first_.values + static_cast<size_t>(row * width_) * element_,
            first_.indices + row * width_, count};
  }
  sampling::WeightRow RowWeights(int64_t row, float scale, float unit) const {
    return {RowData(row), logits_.dtype, sampling::LoadElement(logits_.dtype, First(row, 1).values),
            scale, unit};
  }
  sampling::WeightRow RowWeights(int64_t row, const sampling::RowPlan& plan) const {
    return RowWeights(row, plan.scale, plan.unit);
  }
  double* Sums(int64_t row) const { return sums_ + row * blocks_; }

  topk::RowTask TopKTask(int64_t row, const Candidates& out) const;
  void PlaceFirst();
  void FindFirst();
  void CheckMaxima() const;
  void PlanScratch();
  Scratch Parts(uint8_t* memory) const;
  void SumBlocksOf(int64_t row, int64_t begin, int64_t end);

  int32_t Draw(int64_t row, const Scratch& scratch);
  int32_t DrawOf(const Candidates& from, int64_t count, float least, const float* weights,
                 double random) const;
  int32_t DrawFromCandidates(int64_t row, const sampling::RowPlan& plan, const Scratch& scratch);
  int32_t DrawFromNucleus(int64_t row, const sampling::RowPlan& plan, const Scratch& scratch);
  int32_t DrawFromAll(int64_t row, const sampling::RowPlan& plan, const sampling::Cut& cut,
                      const sampling::Nucleus& nucleus, float* weights) const;
  double Random(int64_t row) const {
    return sampling::Uniform(options_.seed, Of(options_.stream, row, row),
                             Of(options_.position, row, int64_t{0}));
  }
  float LogProb(int64_t row, int32_t token) const;

  MatrixView logits_;
  const SampleOptions& options_;
  bool logprobs_;
  bool any_sums_;
  bool uniform_ = true;  // the same number of first candidates in every row
  size_t element_;
  int64_t blocks_;
  int64_t width_ = 1;          // columns of first_
  Candidates first_;           // [rows, width_]
  int32_t* counts_ = nullptr;  // [rows], for TopK
  struct {
    size_t indices, weights, rest, bytes;
  } scratch_ = {};          // offsets into a thread's
  double* sums_ = nullptr;  // [rows, blocks_], of weights at the row's temperature
  double* raw_ = nullptr;   // [rows, blocks_], of raw logits
};

topk::RowTask Sampler::TopKTask(int64_t row, const Candidates& out) const {
  topk::RowTask task;
  task.x = RowData(row);
  task.dtype = logits_.dtype;
  task.n = logits_.cols;
  task.k = out.count;
  task.plan = topk::PlanBuckets(task.n, task.k);
  task.values = out.values;
  task.indices = out.indices;
  return task;
}

// In an arena of the caller's thread: the pool's own is for TopK.
void Sampler::PlaceFirst() {
  for (int64_t row = 0; row < logits_.rows; ++row) {
    const sampling::RowPlan plan = Plan(row);
    uniform_ &= plan.first == Plan(0).first;
    any_sums_ |= plan.sums_all();
    width_ = std::max(width_, plan.first);
  }
  core::Arena& arena = core::ThreadScratch::Of(core::ThreadScratch::kSampling);
  const auto rows = static_cast<size_t>(logits_.rows);
  const size_t elements = rows * static_cast<size_t>(width_);
  const size_t indices = Aligned(elements * element_);
  const size_t counts = indices + Aligned(elements * sizeof(int32_t));
  uint8_t* memory = arena.Get(counts + rows * sizeof(int32_t));
  first_ = {memory, reinterpret_cast<int32_t*>(memory + indices), width_};
  counts_ = reinterpret_cast<int32_t*>(memory + counts);
}

void Sampler::FindFirst() {
  const TopKOut out{first_.values, width_, first_.indices, width_};
  const TopKOptions options{.pool = options_.pool};
  if (uniform_) {
    TopK(logits_, width_, out, options);
    return;
  }
  for (int64_t row = 0; row < logits_.rows; ++row) {
    counts_[row] = static_cast<int32_t>(Plan(row).first);
  }
  TopK(logits_, std::span<const int32_t>(counts_, static_cast<size_t>(logits_.rows)), out, options);
}

// NaN is above all values, so it shows in the maximum.
void Sampler::CheckMaxima() const {
  for (int64_t row = 0; row < logits_.rows; ++row) {
    const Candidates best = First(row, 1);
    const float max = sampling::LoadElement(logits_.dtype, best.values);
    core::Check(!std::isnan(max), Code::kBadValue, "logits[", row, ", ", best.indices[0],
                "] is NaN");
    core::Check(max != -kInfinity, Code::kBadValue, "logits[", row,
                "] has nothing to sample: every column is -inf");
  }
}

void Sampler::PlanScratch() {
  int64_t candidates = 0;
  size_t rest = 0;
  for (int64_t row = 0; row < logits_.rows; ++row) {
    const sampling::RowPlan plan = Plan(row);
    int64_t k = 0;
    if (plan.path == sampling::SamplePath::kNucleus) {
      k = std::end(sampling::kNucleusSteps)[-1];
      rest = std::max(rest, sampling::NucleusScratch(logits_.cols));
    } else if (plan.path == sampling::SamplePath::kCandidates) {
      k = plan.k;
    }
    for (const int64_t count : {plan.first, std::max(k, plan.first)}) {
      rest = std::max(rest, topk::BucketMaximaScratch(TopKTask(row, {nullptr, nullptr, count})));
    }
    candidates = std::max(candidates, k);
  }
  const auto count = static_cast<size_t>(candidates);
  const size_t weights = std::max<size_t>(count, sampling::kSumBlock) + sampling::kWeightSlack;
  scratch_.indices = Aligned(count * element_);
  scratch_.weights = scratch_.indices + Aligned(count * sizeof(int32_t));
  scratch_.rest = scratch_.weights + Aligned(weights * sizeof(float));
  scratch_.bytes = scratch_.rest + rest;
}

Sampler::Scratch Sampler::Parts(uint8_t* memory) const {
  return {{memory, reinterpret_cast<int32_t*>(memory + scratch_.indices), 0},
          reinterpret_cast<float*>(memory + scratch_.weights),
          memory + scratch_.rest};
}

void Sampler::SumBlocksOf(int64_t row, int64_t begin, int64_t end) {
  const sampling::RowPlan plan = Plan(row);
  const sampling::WeightRow weights = RowWeights(row, plan);
  const sampling::Cut cut{-kInfinity,
                          plan.path == sampling::SamplePath::kAll ? plan.min_weight : 0};
  const bool raw = logprobs_ && !(plan.sums_all() && plan.raw());
  for (int64_t block = begin; block < end; ++block) {
    const int64_t from = block * sampling::kSumBlock;
    const int64_t to = std::min(from + sampling::kSumBlock, logits_.cols);
    if (plan.sums_all()) {
      Sums(row)[block] = cut.least > 0 ? sampling::SumKeptWeights(weights, cut, from, to)
                                       : sampling::SumWeights(weights, from, to);
    }
    if (raw) {
      raw_[row * blocks_ + block] =
          sampling::SumWeights(RowWeights(row, sampling::kRawScale, 1), from, to);
    } else if (logprobs_) {
      raw_[row * blocks_ + block] = Sums(row)[block];
    }
  }
}

// The first `count` candidates, without those of a weight below `least`.
int32_t Sampler::DrawOf(const Candidates& from, int64_t count, float least, const float* weights,
                        double random) const {
  int64_t kept = 1;
  while (kept < count && weights[kept] >= least) {
    ++kept;
  }
  return from.indices[sampling::Locate(weights, kept, random * sampling::Sum(weights, kept))];
}

int32_t Sampler::DrawFromCandidates(int64_t row, const sampling::RowPlan& plan,
                                    const Scratch& scratch) {
  Candidates from = First(row, plan.k);
  if (plan.k > plan.first) {
    from = scratch.candidates;
    from.count = plan.k;
    topk::Kernels(logits_.dtype).row(TopKTask(row, from), scratch.rest);
  }
  sampling::WeightRow weights = RowWeights(row, plan);
  weights.x = from.values;
  sampling::Weights(weights, 0, plan.k, scratch.weights);
  int64_t count = plan.k;
  if (plan.top_p < 1) {
    const double mass = static_cast<double>(plan.top_p) * sampling::Sum(scratch.weights, plan.k);
    count = std::min(count, sampling::Reach(scratch.weights, plan.k, mass));
  }
  return DrawOf(from, count, plan.min_weight, scratch.weights, Random(row));
}

int32_t Sampler::DrawFromNucleus(int64_t row, const sampling::RowPlan& plan,
                                 const Scratch& scratch) {
  const sampling::WeightRow weights = RowWeights(row, plan);
  double* sums = Sums(row);
  double all = 0;
  for (int64_t block = 0; block < blocks_; ++block) {
    all += sums[block];
  }
  const double mass = static_cast<double>(plan.top_p) * all;
  for (const int64_t k : sampling::kNucleusSteps) {
    Candidates from = First(row, k);
    if (k > plan.first) {
      from = scratch.candidates;
      from.count = k;
      topk::Kernels(logits_.dtype).row(TopKTask(row, from), scratch.rest);
    }
    sampling::WeightRow best = weights;
    best.x = from.values;
    sampling::Weights(best, 0, k, scratch.weights);
    const int64_t count = sampling::Reach(scratch.weights, k, mass);
    if (count <= k) {
      return DrawOf(from, count, plan.min_weight, scratch.weights, Random(row));
    }
  }
  sampling::Nucleus nucleus = sampling::FindNucleus(weights, logits_.cols, mass, scratch.rest);
  if (nucleus.tie_weight < plan.min_weight) {
    nucleus.ties = 0;
  }
  const sampling::Cut cut{nucleus.threshold, plan.min_weight};
  for (int64_t block = 0; block < blocks_; ++block) {
    const int64_t from = block * sampling::kSumBlock;
    sums[block] = sampling::SumKeptWeights(weights, cut, from,
                                           std::min(from + sampling::kSumBlock, logits_.cols));
  }
  return DrawFromAll(row, plan, cut, nucleus, scratch.weights);
}

// The columns that the cut keeps, by their number, then the ties of the nucleus.
int32_t Sampler::DrawFromAll(int64_t row, const sampling::RowPlan& plan, const sampling::Cut& cut,
                             const sampling::Nucleus& nucleus, float* weights) const {
  const sampling::WeightRow all = RowWeights(row, plan);
  const double* sums = Sums(row);
  double above = 0;
  int64_t last = 0;
  for (int64_t block = 0; block < blocks_; ++block) {
    above += sums[block];
    last = sums[block] > 0 ? block : last;
  }
  const auto ties = static_cast<double>(nucleus.ties);
  const auto tie_weight = static_cast<double>(nucleus.tie_weight);
  const double place = Random(row) * (above + ties * tie_weight);
  if (nucleus.ties > 0 && place >= above) {
    const double tie = std::min((place - above) / tie_weight, ties - 1);
    return static_cast<int32_t>(
        sampling::FindEqual(all, logits_.cols, nucleus.threshold, static_cast<int64_t>(tie)));
  }
  double before = 0;
  int64_t block = 0;
  for (; block < last && before + sums[block] <= place; ++block) {
    before += sums[block];
  }
  const int64_t from = block * sampling::kSumBlock;
  const int64_t to = std::min(from + sampling::kSumBlock, logits_.cols);
  sampling::KeptWeights(all, cut, from, to, weights);
  return static_cast<int32_t>(from + sampling::Locate(weights, to - from, place - before));
}

int32_t Sampler::Draw(int64_t row, const Scratch& scratch) {
  const sampling::RowPlan plan = Plan(row);
  switch (plan.path) {
    case sampling::SamplePath::kGreedy:
      break;
    case sampling::SamplePath::kCandidates:
      return DrawFromCandidates(row, plan, scratch);
    case sampling::SamplePath::kNucleus:
      return DrawFromNucleus(row, plan, scratch);
    case sampling::SamplePath::kAll:
      return DrawFromAll(row, plan, {-kInfinity, plan.min_weight}, {}, scratch.weights);
  }
  return First(row, 1).indices[0];
}

float Sampler::LogProb(int64_t row, int32_t token) const {
  const float max = RowWeights(row, sampling::kRawScale, 1).max;
  const float x =
      sampling::LoadElement(logits_.dtype, RowData(row) + static_cast<size_t>(token) * element_);
  double sum = 0;
  for (int64_t block = 0; block < blocks_; ++block) {
    sum += raw_[row * blocks_ + block];
  }
  const double below = x == max ? 0 : static_cast<double>(x) - static_cast<double>(max);
  return static_cast<float>(below - std::log(sum));
}

void Sampler::Run(std::span<int32_t> tokens, std::span<float> logprobs) {
  PlaceFirst();
  PlanScratch();
  const int64_t rows = logits_.rows;
  const int64_t threads = (options_.pool != nullptr ? *options_.pool : DefaultPool()).threads();
  // Rows that are dealt out whole are summed while they are still in a core's cache.
  const bool together = any_sums_ && (rows % threads == 0 || rows >= 4 * threads);
  if (!together) {
    FindFirst();
    CheckMaxima();
  }
  core::Lease lease(options_.pool);
  lease.ReserveScratch(scratch_.bytes);
  if (any_sums_) {
    const size_t sums = static_cast<size_t>(rows * blocks_);
    sums_ = reinterpret_cast<double*>(lease.Shared(2 * sums * sizeof(double)));
    raw_ = sums_ + sums;
    constexpr int64_t kBlocksOfTask = 16;
    const int64_t step = together ? blocks_ : kBlocksOfTask;
    const int64_t parts = (blocks_ + step - 1) / step;
    lease.Run(rows * parts, [&](int64_t i, uint8_t* memory) {
      const int64_t row = i / parts;
      if (together) {
        topk::Kernels(logits_.dtype)
            .row(TopKTask(row, First(row, Plan(row).first)), Parts(memory).rest);
      }
      const int64_t begin = i % parts * step;
      SumBlocksOf(row, begin, std::min(begin + step, blocks_));
    });
  }
  if (together) {
    CheckMaxima();
  }
  lease.Run(rows, [&](int64_t row, uint8_t* memory) {
    const int32_t token = Draw(row, Parts(memory));
    tokens[static_cast<size_t>(row)] = token;
    if (logprobs_) {
      logprobs[static_cast<size_t>(row)] = LogProb(row, token);
    }
  });
}

}  // namespace

void Sample(const MatrixView& logits, std::span<int32_t> tokens, std::span<float> logprobs,
            const SampleOptions& options) try {
  const core::EntryPoint entry;
  sampling::CheckSample(logits, options, tokens, logprobs);
  core::EnsureTarget();
  if (logits.rows == 0) {
    return;
  }
  Sampler(logits, options, !logprobs.empty()).Run(tokens, logprobs);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
