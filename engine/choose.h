// From the last hidden states to the next tokens: the LM head, top-k and sampling of Riffle.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/lm_head.h"
#include "engine/model.h"
#include "riffle/sampling.h"
#include "riffle/types.h"

namespace riffle::engine {

// How a row's token is chosen. `stream` and `position` number the draw, as in riffle::Sample.
struct Choice {
  SamplingParams sampling;
  int64_t stream = 0;
  int64_t position = 0;
  bool log_probability = false;
  std::span<const TokenCount> counts = {};  // the tokens that penalties apply to
};

constexpr int32_t kNoToken = -1;

class Chooser {
 public:
  // `model` must outlive this.
  Chooser(const Model& model, uint64_t seed, ThreadPool* pool)
      : model_(model), seed_(seed), pool_(pool) {}

  // tokens[r] is chosen from hidden[r], [rows, hidden] f32, and depends on that and the row's
  // choice alone; kNoToken if its logits are NaN. log_probabilities[r] is that of the token in the
  // softmax of all logits, if the row asks for it and has a token, else 0. Throws riffle::Error.
  void Choose(std::span<const float> hidden, std::span<const Choice> choices,
              std::span<int32_t> tokens, std::span<float> log_probabilities);

  // Sums over all calls. lm_head_seconds: logits with their top-k, which are one operation.
  double lm_head_seconds() const { return lm_head_seconds_; }
  double sampling_seconds() const { return sampling_seconds_; }

 private:
  void GatherStates(std::span<const float> hidden);
  void FindLogProbabilities(std::span<float> log_probabilities);
  void FromTopK(int32_t k);
  void KeepBest(int64_t found, int64_t best);
  void FromLogits();
  void CapLogits(std::span<float> logits) const;
  void PenalizeLogits(std::span<const int64_t> rows, int64_t stride);
  void Draw(const MatrixView& logits, std::span<const int64_t> rows);
  void DrawEach(const MatrixView& logits, const SampleOptions& options);

  const Model& model_;
  uint64_t seed_;
  ThreadPool* pool_;
  double lm_head_seconds_ = 0;
  double sampling_seconds_ = 0;

  // State of the call that is running: the rows that are chosen together, and their hidden states.
  std::span<const Choice> choices_;
  std::span<int32_t> tokens_;
  std::vector<int64_t> rows_;
  std::vector<float> states_;
  std::vector<float> values_;        // the k best logits of each
  std::vector<int32_t> candidates_;  // the tokens of these logits if they are the k best
  std::vector<int32_t> drawn_;
  LmHeadScratch scratch_;
};

}  // namespace riffle::engine
