// The forward pass: a ragged batch of tokens through all layers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/layers/rope.h"
#include "engine/model.h"
#include "engine/quant/matrix.h"
#include "riffle/attention.h"
#include "riffle/kv_cache.h"

namespace riffle::engine {

// What keys and values are rounded to in the cache. bf16 moved the gap of the two best logits by up
// to 0.063, f16 by up to 0.0076 (README.md); the largest of them was 132, far from f16's limit.
constexpr DType kCacheDType = DType::kF16;

// Consecutive tokens of a sequence: their keys and values are written at positions start and on,
// which the sequence of the cache has been extended to.
struct Slice {
  int64_t sequence = 0;
  int64_t start = 0;
  std::span<const int32_t> tokens;
};

class Forward {
 public:
  // `model` and `cache` must outlive this.
  Forward(const Model& model, KvCache& cache, ThreadPool* pool);
  ~Forward();

  // Runs the batch. Its result is the last token of each slice, after the last norm: what the LM
  // head takes, [slices, hidden] f32. Valid until the next call. Throws riffle::Error.
  std::span<const float> Run(std::span<const Slice> batch);

  double attention_seconds() const { return attention_seconds_; }  // the sum over all calls

 private:
  void Prepare(std::span<const Slice> batch);
  void ResizeRounded();
  void Embed();
  void Attention(int64_t layer);  // leaves only the last tokens after the last layer
  void NormRoundRows(const std::vector<float>& weight);
  void NormRopeRows(int64_t layer, const std::vector<float>& weight, int64_t heads,
                    std::vector<float>& x);
  void WriteKeysAndValues(int64_t layer);
  void Attend(int64_t layer);
  void FeedForward(int64_t layer);
  void KeepLast();
  void ForgetPlans();
  template <typename Task>
  void ForRows(const Task& task);

  const Model& model_;
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

  // The batch as layers attend to it, planned by the first one of each kind.
  struct LayerPlan {
    AttentionPlan plan;
    bool made = false;
  };
  LayerPlan local_plan_, global_plan_;

  RopeAngles local_, global_;  // of those layers

  std::vector<float> hidden_;            // [rows, hidden]: the residual stream
  std::vector<float> q_;                 // [rows, q_heads * head_dim], then the attention's result
  std::vector<float> k_, v_;             // [rows, kv_heads * head_dim]
  std::vector<float> attended_;          // [rows, q_heads * head_dim]
  std::vector<float> out_;               // [rows, hidden]
  Activations narrow_, queries_, wide_;  // rounded: hidden, q_heads * head_dim and intermediate
};

}  // namespace riffle::engine
