#include "sampling/sampling_run.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "core/element.h"
#include "core/lease.h"
#include "core/scratch.h"
#include "riffle/topk.h"
#include "sampling/draw.h"
#include "sampling/logprobs.h"

namespace riffle::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A row has three steps: top-k finds its best columns; weights are summed if it needs them; the
// token is drawn, or the row masked.
class Sampler {
 public:
  Sampler(const SamplingBatch& batch, bool logprobs, size_t reserved)
      : batch_(batch), logprobs_(logprobs), reserved_(reserved) {}

  // Places the first candidates of all rows behind the reserved bytes. Returns the arena.
  uint8_t* PlaceFirst();

  // Calls finish(row, draw) for every row that can be sampled, on any thread; finish then calls
  // Draw, Verify or Mask of the RowDraw.
  void Run(core::FunctionRef<void(int64_t row, RowDraw& draw)> finish);
  void Draw(std::span<int32_t> tokens, std::span<float> logprobs);

 private:
  Candidates First(int64_t row, int64_t count) const {
    return {first_.values + static_cast<size_t>(row * width_) * batch_.element,
            first_.indices + row * width_, count};
  }
  // The maximum of a row; NaN if the row has a NaN. Pre: it has been found.
  float Max(int64_t row) const {
    return batch_.Plan(row).windowed ? maxima_[row]
                                     : core::LoadElement(batch_.logits.dtype, First(row, 1).values);
  }
  WeightRow RowWeights(int64_t row, float scale, float unit) const {
    return {batch_.RowData(row), batch_.logits.dtype, Max(row), scale, unit};
  }
  double* Sums(int64_t row) const { return sums_ + row * batch_.blocks; }
  // Whether the draw itself makes the sum that the log-probability needs.
  static bool DrawSumsRaw(const RowPlan& plan) { return plan.windowed && plan.sums_are_raw(); }
  // NaN is above all values, so if there is one it is the maximum.
  bool IsValid(int64_t row) const { return !std::isnan(Max(row)) && Max(row) != -kInfinity; }

  void FindFirst();
  void CheckMaxima() const;
  void PlanScratch();
  void PlaceSums(core::Lease& lease);
  void SumRows(core::Lease& lease);
  void SumBlocksOf(int64_t row, int64_t begin, int64_t end);
  double RawSum(int64_t row) const;
  float LogProb(int64_t row, int32_t token, double raw) const;

  const SamplingBatch& batch_;
  const bool logprobs_;
  const size_t reserved_;
  bool any_sums_ = false;  // some rows need sums of weights before the draw
  bool any_windowed_ = false;
  bool any_first_ = false;           // some rows are not windowed
  bool uniform_ = true;              // every row's plan has the same number of first candidates
  int64_t width_ = 1;                // columns of first_
  Candidates first_;                 // [rows, width_]
  int32_t* counts_ = nullptr;        // [rows], for TopK
  int32_t* tokens_ = nullptr;        // [rows]
  float* token_logprobs_ = nullptr;  // [rows]
  float* maxima_ = nullptr;          // [rows], read for windowed rows
  DrawScratch scratch_;              // of a thread
  double* sums_ = nullptr;           // [rows, blocks], of weights at the row's temperature
  double* raw_ = nullptr;            // [rows, blocks], of raw logits
};

// The first candidates are in an arena of the calling thread, because TopK uses the pool's own.
uint8_t* Sampler::PlaceFirst() {
  const int64_t rows = batch_.logits.rows;
  for (int64_t row = 0; row < rows; ++row) {
    const RowPlan plan = batch_.Plan(row);
    uniform_ &= plan.num_first == batch_.Plan(0).num_first;
    any_sums_ |= plan.sums || (logprobs_ && !DrawSumsRaw(plan));
    any_windowed_ |= plan.windowed;
    any_first_ |= !plan.windowed;
    width_ = std::max(width_, plan.num_first);
  }
  const FirstScratch layout = PlanFirst(rows, width_, batch_.element, reserved_);
  uint8_t* const memory = core::ThreadScratch::Of(core::ThreadScratch::kSampling).Get(layout.bytes);
  first_ = {layout.values.At(memory), layout.indices.At(memory), width_};
  counts_ = layout.counts.At(memory);
  tokens_ = layout.tokens.At(memory);
  token_logprobs_ = layout.logprobs.At(memory);
  maxima_ = layout.maxima.At(memory);
  return memory;
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
    counts_[row] = static_cast<int32_t>(batch_.Plan(row).num_first);
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
  int64_t windowed = 0;
  for (int64_t row = 0; row < batch_.logits.rows; ++row) {
    const RowPlan plan = batch_.Plan(row);
    int64_t k = 0;
    if (plan.path == SamplePath::kNucleus) {
      k = std::end(kNucleusSteps)[-1];
      rest = std::max(
          {rest, NucleusScratch(batch_.logits.cols), batch_.TopKScratch(row, kNucleusSteps[0])});
      if (plan.windowed) {
        windowed = batch_.logits.cols;
        rest = std::max(rest, NucleusSearch::FindBestScratch());
      }
    } else if (plan.path == SamplePath::kCandidates) {
      k = plan.k;
    }
    for (const int64_t count : {plan.num_first, std::max(k, plan.num_first)}) {
      rest = std::max(rest, batch_.TopKScratch(row, count));
    }
    candidates = std::max(candidates, k);
  }
  scratch_ = PlanDraw(candidates, batch_.element, rest, windowed);
}

void Sampler::SumBlocksOf(int64_t row, int64_t begin, int64_t end) {
  const RowPlan plan = batch_.Plan(row);
  const auto sum_weights = batch_.kernels.sum_weights;
  const WeightRow weights = RowWeights(row, plan.scale, plan.unit);
  const Cut min_weight{-kInfinity, plan.min_weight};
  const bool cut = plan.path == SamplePath::kAll && plan.min_weight > 0;
  const bool logprobs = logprobs_ && !DrawSumsRaw(plan);
  const bool shared = plan.sums && plan.sums_are_raw();
  if (!IsValid(row)) {
    return;
  }
  for (int64_t block = begin; block < end; ++block) {
    const int64_t from = batch_.BlockBegin(block);
    const int64_t to = batch_.BlockEnd(block);
    if (plan.sums) {
      Sums(row)[block] = sum_weights(weights, cut ? &min_weight : nullptr, from, to);
    }
    if (logprobs) {
      raw_[row * batch_.blocks + block] =
          shared ? Sums(row)[block] : sum_weights(RowWeights(row, kRawScale, 1), nullptr, from, to);
    }
  }
}

void Sampler::PlaceSums(core::Lease& lease) {
  const SumsLayout layout = PlanSums(batch_.logits.rows, batch_.blocks);
  uint8_t* shared = lease.Shared(layout.bytes);
  sums_ = layout.sums.At(shared);
  raw_ = layout.raw.At(shared);
}

void Sampler::SumRows(core::Lease& lease) {
  constexpr int64_t kBlocksOfTask = 16;
  const int64_t tasks = (batch_.blocks + kBlocksOfTask - 1) / kBlocksOfTask;  // per row
  lease.Run(batch_.logits.rows * tasks, [&](int64_t i, uint8_t*) {
    if (batch_.Plan(i / tasks).windowed) {
      return;  // the maximum is not known yet
    }
    const int64_t begin = i % tasks * kBlocksOfTask;
    SumBlocksOf(i / tasks, begin, std::min(begin + kBlocksOfTask, batch_.blocks));
  });
}

double Sampler::RawSum(int64_t row) const {
  const double* const raw = raw_ + row * batch_.blocks;
  return std::accumulate(raw, raw + batch_.blocks, 0.0);
}

// `raw`: the sum of the weights of raw logits.
float Sampler::LogProb(int64_t row, int32_t token, double raw) const {
  const float x = core::LoadElement(
      batch_.logits.dtype, batch_.RowData(row) + static_cast<size_t>(token) * batch_.element);
  return LogSoftmax(x, Max(row), raw);
}

void Sampler::Run(core::FunctionRef<void(int64_t row, RowDraw& draw)> finish) {
  PlaceFirst();
  PlanScratch();
  const int64_t rows = batch_.logits.rows;
  ThreadPool* const pool = batch_.options.pool;
  const int64_t threads = (pool != nullptr ? *pool : DefaultPool()).threads();
  // If tasks take whole rows, each row is summed while it is still in the core's cache.
  const bool tasks_take_rows =
      (any_sums_ || any_windowed_) && (rows % threads == 0 || rows >= 4 * threads);
  if (!tasks_take_rows && any_first_) {
    FindFirst();
  }
  core::Lease lease(pool);
  lease.ReserveScratch(scratch_.bytes);
  if (any_sums_) {
    PlaceSums(lease);
  }
  if (any_sums_ && !tasks_take_rows) {
    SumRows(lease);
  }
  lease.Run(rows, [&](int64_t row, uint8_t* memory) {
    const RowPlan plan = batch_.Plan(row);
    const Candidates first = First(row, plan.num_first);
    if (tasks_take_rows && !plan.windowed) {
      batch_.FindBest(row, first, scratch_.rest.At(memory));
    }
    RowDraw draw(batch_, row, first, any_sums_ ? Sums(row) : nullptr, scratch_, memory);
    maxima_[row] = draw.max();
    if (any_sums_ && (tasks_take_rows || plan.windowed)) {
      SumBlocksOf(row, 0, batch_.blocks);
    }
    if (IsValid(row)) {
      finish(row, draw);
    }
  });
  CheckMaxima();
}

// Tokens are kept in scratch until all rows are done: a row that fails leaves the output untouched.
void Sampler::Draw(std::span<int32_t> tokens, std::span<float> logprobs) {
  Run([&](int64_t row, RowDraw& draw) {
    tokens_[row] = draw.Draw();
    if (logprobs_) {
      token_logprobs_[row] =
          LogProb(row, tokens_[row], DrawSumsRaw(batch_.Plan(row)) ? draw.mass() : RawSum(row));
    }
  });
  for (int64_t row = 0; row < batch_.logits.rows; ++row) {
    const bool valid = IsValid(row);
    tokens[static_cast<size_t>(row)] = valid ? tokens_[row] : -1;
    if (logprobs_) {
      logprobs[static_cast<size_t>(row)] =
          valid ? token_logprobs_[row] : std::numeric_limits<float>::quiet_NaN();
    }
  }
}

}  // namespace

void RunSample(const SamplingBatch& batch, std::span<int32_t> tokens, std::span<float> logprobs,
               size_t reserved) {
  Sampler(batch, !logprobs.empty(), reserved).Draw(tokens, logprobs);
}

uint8_t* ReserveBefore(const SamplingBatch& batch, size_t reserved) {
  return Sampler(batch, false, reserved).PlaceFirst();
}

uint8_t* ReserveArena(size_t bytes) {
  return core::ThreadScratch::Of(core::ThreadScratch::kSampling).Get(bytes);
}

void VerifyRows(const SamplingBatch& batch, std::span<const int32_t> drafts,
                const MatrixView& probabilities, std::span<int32_t> tokens, size_t reserved) {
  if (probabilities.data == nullptr) {
    RunSample(batch, tokens, {}, reserved);
    return;
  }
  std::fill(tokens.begin(), tokens.end(), -1);
  Sampler(batch, false, reserved).Run([&](int64_t row, RowDraw& draw) {
    const auto r = static_cast<size_t>(row);
    const auto before =
        static_cast<int64_t>(row - std::count(drafts.begin(), drafts.begin() + row, int32_t{-1}));
    const float* const q =
        static_cast<const float*>(probabilities.data) + before * probabilities.row_stride;
    tokens[r] = drafts[r] < 0 ? draw.Draw() : draw.Verify(drafts[r], q);
  });
}

void RunFilters(const SamplingBatch& batch, float* logits) {
  Sampler(batch, false, 0).Run([&](int64_t row, RowDraw& draw) {
    draw.Mask(logits + row * batch.logits.row_stride);
  });
}

}  // namespace riffle::sampling
