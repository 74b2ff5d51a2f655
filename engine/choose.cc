#include "engine/choose.h"

#include <algorithm>
#include <limits>

#include "engine/layers/row_kernels.h"
#include "engine/stopwatch.h"
#include "engine/weights.h"
#include "riffle/error.h"
#include "riffle/sampling.h"

namespace riffle::engine {
namespace {

// Above this k, all logits are stored and sampled from; up to it, top-k is fused with the product.
constexpr int32_t kMaxFused = 1024;

// How many of the best logits certainly include the k that are best after the row's penalties.
int64_t CandidatesNeeded(const Choice& choice, int32_t k) {
  const bool penalized = choice.sampling.penalties.any();
  return k + (penalized ? static_cast<int64_t>(choice.counts.size()) : 0);
}

// The key that rows are grouped by: 1 for greedy rows, otherwise k; 0 for rows that need all
// logits, because k is off or large, or their penalties count many tokens or raise logits. Rows of
// different k never share a call, so a row's sums, and its draw, do not depend on the others.
int32_t FusedGroupKey(const Choice& choice) {
  const SamplingParams& sampling = choice.sampling;
  const int32_t k = sampling.temperature == 0 ? 1 : sampling.top_k;
  const bool fused = CandidatesNeeded(choice, k) <= kMaxFused &&
                     (!sampling.penalties.any() || sampling.penalties.only_lower());
  return fused ? k : 0;
}

}  // namespace

void Chooser::Choose(std::span<const float> hidden, std::span<const Choice> choices,
                     std::span<int32_t> tokens, std::span<float> log_probabilities) {
  choices_ = choices;
  tokens_ = tokens;
  // Takes groups in ascending order of k until none is left.
  int32_t next = 0;
  while (next != std::numeric_limits<int32_t>::max()) {
    const int32_t k = next;
    next = std::numeric_limits<int32_t>::max();
    rows_.clear();
    for (size_t row = 0; row < choices.size(); ++row) {
      const int32_t wanted = FusedGroupKey(choices[row]);
      if (wanted == k) {
        rows_.push_back(static_cast<int64_t>(row));
      } else if (wanted > k) {
        next = std::min(next, wanted);
      }
    }
    if (rows_.empty()) {
      continue;
    }
    GatherStates(hidden);
    if (k > 0) {
      FromTopK(k);
    } else {
      FromLogits();
    }
  }
  std::fill(log_probabilities.begin(), log_probabilities.end(), 0.0f);
  rows_.clear();
  for (size_t row = 0; row < choices.size(); ++row) {
    if (choices[row].log_probability && tokens[row] != kNoToken) {
      rows_.push_back(static_cast<int64_t>(row));
    }
  }
  if (!rows_.empty()) {
    GatherStates(hidden);
    FindLogProbabilities(log_probabilities);
  }
}

// Leaves the hidden states of rows_ in states_.
void Chooser::GatherStates(std::span<const float> hidden) {
  const size_t size = static_cast<size_t>(model_.spec().hidden_size);
  states_.clear();
  for (const int64_t row : rows_) {
    const auto state = hidden.subspan(static_cast<size_t>(row) * size, size);
    states_.insert(states_.end(), state.begin(), state.end());
  }
}

// Finds the log-probabilities of the tokens of rows_. riffle::Sample gives that of the best token;
// another token's is lower by the difference of their logits. It runs after the tokens are drawn,
// so that asking for log-probabilities changes no token.
void Chooser::FindLogProbabilities(std::span<float> log_probabilities) {
  const Stopwatch watch;
  const ModelSpec& spec = model_.spec();
  const float greedy[] = {0};
  SampleOptions options;
  options.temperature = greedy;
  options.pool = pool_;
  std::vector<int32_t> best(LmHead::kStoredRows);
  std::vector<float> of_best(LmHead::kStoredRows);
  for (size_t first = 0; first < rows_.size(); first += LmHead::kStoredRows) {
    const size_t count = std::min<size_t>(LmHead::kStoredRows, rows_.size() - first);
    const float* states = states_.data() + first * static_cast<size_t>(spec.hidden_size);
    const MatrixView logits =
        model_.weights().head.Logits(states, static_cast<int64_t>(count), scratch_, pool_);
    CapLogits(scratch_.logits);
    Sample(logits, std::span(best).first(count), std::span(of_best).first(count), options);
    for (size_t i = 0; i < count; ++i) {
      const float* row =
          static_cast<const float*>(logits.data) + static_cast<int64_t>(i) * logits.row_stride;
      const auto at = static_cast<size_t>(rows_[first + i]);
      log_probabilities[at] = of_best[i] + (row[tokens_[at]] - row[best[i]]);
    }
  }
  lm_head_seconds_ += watch.seconds();
}

// Draws from the k best logits, which are found among a few more where rows have penalties.
void Chooser::FromTopK(int32_t k) {
  const Stopwatch watch;
  const ModelSpec& spec = model_.spec();
  const int64_t rows = static_cast<int64_t>(rows_.size());
  const int64_t best = std::min<int64_t>(k, spec.vocab_size);
  int64_t found = best;
  for (const int64_t row : rows_) {
    found = std::max(found, CandidatesNeeded(choices_[static_cast<size_t>(row)], k));
  }
  found = std::min(found, spec.vocab_size);
  values_.resize(static_cast<size_t>(rows * found));
  candidates_.resize(static_cast<size_t>(rows * found));
  model_.weights().head.TopK(states_.data(), rows, found, values_.data(), candidates_.data(),
                             scratch_, pool_);
  CapLogits(values_);
  lm_head_seconds_ += watch.seconds();
  KeepBest(found, best);
  // Draws greedy rows too, because only Draw detects rows of NaN.
  Draw({values_.data(), DType::kF32, rows, best, best}, rows_);
  for (int64_t i = 0; i < rows; ++i) {
    int32_t& token = tokens_[static_cast<size_t>(rows_[static_cast<size_t>(i)])];
    token = token == kNoToken ? kNoToken : candidates_[static_cast<size_t>(i * best + token)];
  }
}

// Each row has `found` candidates; keeps the `best` best of them after its penalties.
void Chooser::KeepBest(int64_t found, int64_t best) {
  const Stopwatch watch;
  const auto size = static_cast<size_t>(found);
  const auto kept = static_cast<size_t>(best);
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Choice& choice = choices_[static_cast<size_t>(rows_[i])];
    const auto values = std::span(values_).subspan(i * size, size);
    const auto tokens = std::span(candidates_).subspan(i * size, size);
    if (choice.sampling.penalties.any()) {
      PenalizeAndSort(choice.sampling.penalties, choice.counts, values, tokens);
    }
    if (found > best && i > 0) {
      std::copy_n(values.data(), kept, values_.data() + i * kept);
      std::copy_n(tokens.data(), kept, candidates_.data() + i * kept);
    }
  }
  sampling_seconds_ += watch.seconds();
}

// Draws from all logits, a few rows at a time.
void Chooser::FromLogits() {
  const ModelSpec& spec = model_.spec();
  for (size_t first = 0; first < rows_.size(); first += LmHead::kStoredRows) {
    const Stopwatch watch;
    const size_t count = std::min<size_t>(LmHead::kStoredRows, rows_.size() - first);
    const float* states = states_.data() + first * static_cast<size_t>(spec.hidden_size);
    const MatrixView logits =
        model_.weights().head.Logits(states, static_cast<int64_t>(count), scratch_, pool_);
    CapLogits(scratch_.logits);
    lm_head_seconds_ += watch.seconds();
    const auto rows = std::span(rows_).subspan(first, count);
    PenalizeLogits(rows, logits.row_stride);
    Draw(logits, rows);
  }
}

// Applies penalties to rows whose logits are in the scratch.
void Chooser::PenalizeLogits(std::span<const int64_t> rows, int64_t stride) {
  const Stopwatch watch;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Choice& choice = choices_[static_cast<size_t>(rows[i])];
    if (choice.sampling.penalties.any()) {
      Penalize(choice.sampling.penalties, choice.counts,
               scratch_.logits.data() + static_cast<int64_t>(i) * stride);
    }
  }
  sampling_seconds_ += watch.seconds();
}

// Applies the model's soft cap, which keeps the order of logits.
void Chooser::CapLogits(std::span<float> logits) const {
  if (const std::optional<float> cap = model_.spec().logit_soft_cap) {
    SoftCapRow(*cap, static_cast<int64_t>(logits.size()), logits.data());
  }
}

// Stores the drawn columns in tokens_ of the rows.
void Chooser::Draw(const MatrixView& logits, std::span<const int64_t> rows) {
  const Stopwatch watch;
  std::vector<float> temperature, top_p, min_p;
  std::vector<int32_t> top_k;
  std::vector<int64_t> stream, position;
  for (const int64_t row : rows) {
    const Choice& choice = choices_[static_cast<size_t>(row)];
    temperature.push_back(choice.sampling.temperature);
    top_k.push_back(choice.sampling.top_k);
    top_p.push_back(choice.sampling.top_p);
    min_p.push_back(choice.sampling.min_p);
    stream.push_back(choice.stream);
    position.push_back(choice.position);
  }
  SampleOptions options;
  options.temperature = temperature;
  options.top_k = top_k;
  options.top_p = top_p;
  options.min_p = min_p;
  options.seed = seed_;
  options.stream = stream;
  options.position = position;
  options.pool = pool_;
  drawn_.resize(rows.size());
  try {
    Sample(logits, drawn_, options);
  } catch (const Error& error) {
    if (error.code() != Code::kBadValue) {
      throw;
    }
    DrawEach(logits, options);
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    tokens_[static_cast<size_t>(rows[i])] = drawn_[i];
  }
  sampling_seconds_ += watch.seconds();
}

// Some row has a NaN: draws row by row, so that only that row gets no token.
void Chooser::DrawEach(const MatrixView& logits, const SampleOptions& options) {
  for (int64_t row = 0; row < logits.rows; ++row) {
    const auto i = static_cast<size_t>(row);
    MatrixView one = logits;
    one.rows = 1;
    one.data = static_cast<const float*>(logits.data) + row * logits.row_stride;
    SampleOptions its = options;
    its.temperature = options.temperature.subspan(i, 1);
    its.top_k = options.top_k.subspan(i, 1);
    its.top_p = options.top_p.subspan(i, 1);
    its.min_p = options.min_p.subspan(i, 1);
    its.stream = options.stream.subspan(i, 1);
    its.position = options.position.subspan(i, 1);
    try {
      Sample(one, std::span(drawn_).subspan(i, 1), its);
    } catch (const Error& error) {
      if (error.code() != Code::kBadValue) {
        throw;
      }
      drawn_[i] = kNoToken;
    }
  }
}

}  // namespace riffle::engine
