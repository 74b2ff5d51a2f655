#include "sampling/sampling_run.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "core/check.h"
#include "core/element.h"
#include "core/lease.h"
#include "core/scratch.h"
#include "riffle/topk.h"
#include "sampling/draw.h"

namespace riffle::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A row has three steps: top-k finds its best columns; weights are summed if it needs them; the
// token is drawn, or the row masked.
class Sampler {
 public:
  Sampler(const SamplingBatch& batch, bool logprobs)
      : batch_(batch), logprobs_(logprobs), any_sums_(logprobs) {}

  // Calls finish(row, its draw, which still has to be made) for every row that can be sampled, on
  // any thread.
  void Run(core::FunctionRef<void(int64_t row, RowDraw& draw)> finish);
  void Draw(std::span<int32_t> tokens, std::span<float> logprobs);

 private:
  Candidates First(int64_t row, int64_t count) const {
    return {first_.values + static_cast<size_t>(row * width_) * batch_.element,
            first_.indices + row * width_, count};
  }
  float Max(int64_t row) const {
    return core::LoadElement(batch_.logits.dtype, First(row, 1).values);
  }
  WeightRow RowWeights(int64_t row, float scale, float unit) const {
    return {batch_.RowData(row), batch_.logits.dtype, Max(row), scale, unit};
  }
  double* Sums(int64_t row) const { return sums_ + row * batch_.blocks; }
  // NaN is above all values, so if there is one it is the maximum.
  bool IsValid(int64_t row) const { return !std::isnan(Max(row)) && Max(row) != -kInfinity; }

  void PlaceFirst();
  void FindFirst();
  void CheckMaxima() const;
  void PlanScratch();
  void SumRows(core::Lease& lease, bool find_first);
  void SumBlocksOf(int64_t row, int64_t begin, int64_t end);
  float LogProb(int64_t row, int32_t token) const;

  const SamplingBatch& batch_;
  const bool logprobs_;
  bool any_sums_;
  bool uniform_ = true;        // every row's plan has the same number of first candidates
  int64_t width_ = 1;          // columns of first_
  Candidates first_;           // [rows, width_]
  int32_t* counts_ = nullptr;  // [rows], for TopK
  DrawScratch scratch_;        // of a thread
  double* sums_ = nullptr;     // [rows, blocks], of weights at the row's temperature
  double* raw_ = nullptr;      // [rows, blocks], of raw logits
};

// The first candidates are in an arena of the calling thread, because TopK uses the pool's own.
void Sampler::PlaceFirst() {
  const int64_t rows = batch_.logits.rows;
  for (int64_t row = 0; row < rows; ++row) {
    const RowPlan plan = batch_.Plan(row);
    uniform_ &= plan.first == batch_.Plan(0).first;
    any_sums_ |= plan.sums;
    width_ = std::max(width_, plan.first);
  }
  const FirstScratch layout = PlanFirst(rows, width_, batch_.element);
  uint8_t* memory = core::ThreadScratch::Of(core::ThreadScratch::kSampling).Get(layout.bytes);
  first_ = {layout.values.At(memory), layout.indices.At(memory), width_};
  counts_ = layout.counts.At(memory);
}

void Sampler::FindFirst() {
  const MatrixView& logits = batch_.logits;
  const TopKOut out{first_.values, width_, first_.indices, width_};
  const TopKOptions options{.pool = batch_.options.pool};
  if (uniform_) {
    TopK(logits, width_, out, options);
    return;
  }
  for (int64_t row = 0; row < logits.rows; ++row) {
    counts_[row] = static_cast<int32_t>(batch_.Plan(row).first);
  }
  TopK(logits, std::span<const int32_t>(counts_, static_cast<size_t>(logits.rows)), out, options);
}

void Sampler::CheckMaxima() const {
  if (!batch_.draws || batch_.options.on_invalid == InvalidRow::kToken) {
    return;
  }
  for (int64_t row = 0; row < batch_.logits.rows; ++row) {
    const float max = Max(row);
    core::Check(!std::isnan(max), Code::kBadValue, "logits[", row, ", ", First(row, 1).indices[0],
                "] is NaN");
    core::Check(max != -kInfinity, Code::kBadValue, "logits[", row,
                "] has nothing to sample: every column is -inf");
  }
}

void Sampler::PlanScratch() {
  int64_t candidates = 0;
  size_t rest = 0;  // for top-k, or for the search for the nucleus
  for (int64_t row = 0; row < batch_.logits.rows; ++row) {
    const RowPlan plan = batch_.Plan(row);
    int64_t k = 0;
    if (plan.path == SamplePath::kNucleus) {
      k = std::end(kNucleusSteps)[-1];
      rest = std::max(rest, NucleusScratch(batch_.logits.cols));
    } else if (plan.path == SamplePath::kCandidates) {
      k = plan.k;
    }
    for (const int64_t count : {plan.first, std::max(k, plan.first)}) {
      rest = std::max(rest, batch_.TopKScratch(row, count));
    }
    candidates = std::max(candidates, k);
  }
  scratch_ = PlanDraw(candidates, batch_.element, rest);
}

void Sampler::SumBlocksOf(int64_t row, int64_t begin, int64_t end) {
  const RowPlan plan = batch_.Plan(row);
  const auto sum_weights = batch_.kernels.sum_weights;
  const WeightRow weights = RowWeights(row, plan.scale, plan.unit);
  const Cut min_weight{-kInfinity, plan.min_weight};
  const bool cut = plan.path == SamplePath::kAll && plan.min_weight > 0;
  const bool raw = logprobs_ && !(plan.sums && plan.raw());
  for (int64_t block = begin; block < end; ++block) {
    const int64_t from = batch_.BlockBegin(block);
    const int64_t to = batch_.BlockEnd(block);
    if (plan.sums) {
      Sums(row)[block] = sum_weights(weights, cut ? &min_weight : nullptr, from, to);
    }
    if (raw) {
      raw_[row * batch_.blocks + block] =
          sum_weights(RowWeights(row, kRawScale, 1), nullptr, from, to);
    } else if (logprobs_) {
      raw_[row * batch_.blocks + block] = Sums(row)[block];
    }
  }
}

// With `find_first`, one task finds a row's first candidates and then sums the whole row.
void Sampler::SumRows(core::Lease& lease, bool find_first) {
  const int64_t blocks = batch_.blocks;
  const SumsLayout layout = PlanSums(batch_.logits.rows, blocks);
  uint8_t* shared = lease.Shared(layout.bytes);
  sums_ = layout.sums.At(shared);
  raw_ = layout.raw.At(shared);
  constexpr int64_t kBlocksOfTask = 16;
  const int64_t step = find_first ? blocks : kBlocksOfTask;
  const int64_t tasks = (blocks + step - 1) / step;  // per row
  lease.Run(batch_.logits.rows * tasks, [&](int64_t i, uint8_t* memory) {
    const int64_t row = i / tasks;
    if (find_first) {
      batch_.FindBest(row, First(row, batch_.Plan(row).first), scratch_.rest.At(memory));
    }
    const int64_t begin = i % tasks * step;
    SumBlocksOf(row, begin, std::min(begin + step, blocks));
  });
}

float Sampler::LogProb(int64_t row, int32_t token) const {
  const float max = Max(row);
  const float x = core::LoadElement(
      batch_.logits.dtype, batch_.RowData(row) + static_cast<size_t>(token) * batch_.element);
  double sum = 0;
  for (int64_t block = 0; block < batch_.blocks; ++block) {
    sum += raw_[row * batch_.blocks + block];
  }
  const double below = x == max ? 0 : static_cast<double>(x) - static_cast<double>(max);
  return static_cast<float>(below - std::log(sum));
}

void Sampler::Run(core::FunctionRef<void(int64_t row, RowDraw& draw)> finish) {
  PlaceFirst();
  PlanScratch();
  const int64_t rows = batch_.logits.rows;
  ThreadPool* const pool = batch_.options.pool;
  const int64_t threads = (pool != nullptr ? *pool : DefaultPool()).threads();
  // If tasks take whole rows, each row is summed while it is still in the core's cache.
  const bool together = any_sums_ && (rows % threads == 0 || rows >= 4 * threads);
  if (!together) {
    FindFirst();
    CheckMaxima();
  }
  core::Lease lease(pool);
  lease.ReserveScratch(scratch_.bytes);
  if (any_sums_) {
    SumRows(lease, together);
  }
  if (together) {
    CheckMaxima();
  }
  lease.Run(rows, [&](int64_t row, uint8_t* memory) {
    if (IsValid(row)) {
      const Candidates first = First(row, batch_.Plan(row).first);
      double* const sums = any_sums_ ? Sums(row) : nullptr;
      RowDraw draw(batch_, row, first, sums, scratch_, memory);
      finish(row, draw);
    }
  });
}

void Sampler::Draw(std::span<int32_t> tokens, std::span<float> logprobs) {
  Run([&](int64_t row, RowDraw& draw) {
    tokens[static_cast<size_t>(row)] = draw.Draw();
    if (logprobs_) {
      logprobs[static_cast<size_t>(row)] = LogProb(row, tokens[static_cast<size_t>(row)]);
    }
  });
  for (int64_t row = 0; row < batch_.logits.rows; ++row) {
    if (!IsValid(row)) {
      tokens[static_cast<size_t>(row)] = -1;
      if (logprobs_) {
        logprobs[static_cast<size_t>(row)] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
}

}  // namespace

void RunSample(const SamplingBatch& batch, std::span<int32_t> tokens, std::span<float> logprobs) {
  Sampler(batch, !logprobs.empty()).Draw(tokens, logprobs);
}

void RunFilters(const SamplingBatch& batch, float* logits) {
  Sampler(batch, false).Run([&](int64_t row, RowDraw& draw) {
    draw.Mask(logits + row * batch.logits.row_stride);
  });
}

}  // namespace riffle::sampling
