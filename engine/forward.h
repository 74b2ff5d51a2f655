// The forward pass: takes a ragged batch of tokens through all layers, as the model's spec says. It
// contains nothing specific to an architecture.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/layers/rope.h"
#include "engine/layers/row_kernels.h"
#include "engine/model.h"
#include "engine/quant/matrix.h"
#include "engine/weights.h"
#include "riffle/attention.h"
#include "riffle/kv_cache.h"

namespace riffle::engine {

// Consecutive tokens of a sequence. Their keys and values are written at positions from `start` on;
// the sequence of the cache has already been extended to hold them.
struct Slice {
  int64_t sequence = 0;
  int64_t start = 0;
  std::span<const int32_t> tokens;
};

class Forward {
 public:
  // `model` and `cache` must outlive this object. `context`: the most tokens that a sequence may
  // have, by which LongRoPE chooses its factors; 0: the model's.
  Forward(const Model& model, KvCache& cache, ThreadPool* pool, int64_t context = 0);
  ~Forward();

  // Runs the batch. Returns, for the last token of each slice, the LM head's input after the last
  // norm: [slices, hidden] f32, valid until the next call. Throws riffle::Error.
  std::span<const float> Run(std::span<const Slice> batch);

  double attention_seconds() const { return attention_seconds_; }  // the sum over all calls

 private:
  void Prepare(std::span<const Slice> batch);
  void ResizeRounded();
  void Embed();
  void Attention(int64_t layer);  // leaves only the last token of each slice after the last layer
  void NormRoundRows(const std::vector<float>& weight);
  void FinishHeads(int64_t layer, const std::vector<float>& bias, const std::vector<float>& weight,
                   int64_t heads, std::vector<float>& x);
  void WriteKeysAndValues(int64_t layer);
  void Attend(int64_t layer);
  void FeedForward(int64_t layer);
  void AddToStream(const std::vector<float>& post_norm, int64_t row);
  void KeepLast();
  void ForgetPlans();
  const Layer& WeightsOf(int64_t layer) const;
  const LayerSpec& SpecOf(int64_t layer) const;
  Norm NormOf(const std::vector<float>& weight) const;
  template <typename Task>
  void ForRows(const Task& task);

  const Model& model_;
  const ModelSpec& spec_;  // the model's
  KvCache& cache_;
  ThreadPool* pool_;
  double attention_seconds_ = 0;

  std::span<const Slice> batch_;
  int64_t rows_ = 0;
  std::vector<int32_t> tokens_;     // [rows]
  std::vector<int32_t> positions_;  // [rows]
  std::vector<int32_t> cu_q_lens_;  // [slices + 1]
  std::vector<int64_t> sequences_;  // [slices]
  KvBatch kv_batch_;

  // The attention plan of the batch, made by the first layer with this window and then reused.
  struct SharedPlan {
    std::optional<int64_t> window;
    AttentionPlan plan;
    bool made = false;
  };
  std::vector<SharedPlan> plans_;
  std::vector<size_t> plan_of_layer_;

  std::vector<RopeAngles> angles_;  // of ModelSpec::ropes

  std::vector<float> hidden_;            // [rows, hidden]: the residual stream
  std::vector<float> q_;                 // [rows, q_heads * head_dim], then the attention's result
  std::vector<float> k_, v_;             // [rows, kv_heads * head_dim]
  std::vector<float> attended_;          // [rows, q_heads * head_dim]
  std::vector<float> out_;               // [rows, hidden]
  Activations narrow_, queries_, wide_;  // rounded: hidden, q_heads * head_dim and intermediate
};

}  // namespace riffle::engine
