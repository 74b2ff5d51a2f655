#include "engine/forward.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "engine/layers/row_kernels.h"
#include "engine/quant/blocks.h"
#include "engine/stopwatch.h"
#include "riffle/attention.h"

namespace riffle::engine {
namespace {

// Rows per task: the norms of one row take 0.3 to 2 us.
constexpr int64_t kRowsPerTask = 4;

void Grow(std::vector<float>& values, int64_t size) {
  if (static_cast<int64_t>(values.size()) < size) {
    values.resize(static_cast<size_t>(size));
  }
}

HeadsView Heads(const float* data, int64_t rows, int64_t heads, int64_t head_dim) {
  return {data, DType::kF32, rows, heads, head_dim, heads * head_dim, head_dim};
}

}  // namespace

Forward::Forward(const Model& model, KvCache& cache, ThreadPool* pool, int64_t context)
    : model_(model), spec_(model.spec()), cache_(cache), pool_(pool) {
  for (size_t i = 0; i < spec_.ropes.size(); ++i) {
    const RopeSpec& rope = spec_.ropes[i];
    const bool is_short = !rope.short_factors.empty() &&
                          (context > 0 ? context : spec_.context_length) <= rope.original_context;
    const Weights& weights = model.weights();
    angles_.emplace_back(spec_.head_dim, rope,
                         is_short ? weights.rope_short_factors[i] : weights.rope_factors[i]);
  }
  for (const LayerSpec& layer : spec_.layers) {
    size_t plan = 0;
    while (plan < plans_.size() && plans_[plan].window != layer.window) {
      ++plan;
    }
    if (plan == plans_.size()) {
      plans_.emplace_back().window = layer.window;
    }
    plan_of_layer_.push_back(plan);
  }
  [[maybe_unused]] const std::string target = Target();  // applies RIFFLE_TARGET
}
Forward::~Forward() = default;

const Layer& Forward::WeightsOf(int64_t index) const {
  return model_.weights().layers[static_cast<size_t>(index)];
}
const LayerSpec& Forward::SpecOf(int64_t index) const {
  return spec_.layers[static_cast<size_t>(index)];
}
Norm Forward::NormOf(const std::vector<float>& weight) const {
  return {weight.data(), spec_.rms_epsilon};
}

template <typename Task>
void Forward::ForRows(const Task& task) {
  const auto run = [&](int64_t group) {
    const int64_t end = std::min(rows_, (group + 1) * kRowsPerTask);
    for (int64_t row = group * kRowsPerTask; row < end; ++row) {
      task(row);
    }
  };
  ParallelFor((rows_ + kRowsPerTask - 1) / kRowsPerTask, std::ref(run), {.pool = pool_});
}

void Forward::Prepare(std::span<const Slice> batch) {
  batch_ = batch;
  tokens_.clear();
  positions_.clear();
  sequences_.clear();
  cu_q_lens_.assign(1, 0);
  for (const Slice& slice : batch) {
    sequences_.push_back(slice.sequence);
    for (size_t i = 0; i < slice.tokens.size(); ++i) {
      tokens_.push_back(slice.tokens[i]);
      positions_.push_back(static_cast<int32_t>(slice.start + static_cast<int64_t>(i)));
    }
    cu_q_lens_.push_back(static_cast<int32_t>(tokens_.size()));
  }
  rows_ = static_cast<int64_t>(tokens_.size());
  const int64_t last = *std::max_element(positions_.begin(), positions_.end());
  for (RopeAngles& angles : angles_) {
    angles.Grow(last);
  }
  Grow(hidden_, rows_ * spec_.hidden_size);
  Grow(out_, rows_ * spec_.hidden_size);
  Grow(q_, rows_ * spec_.query_size());
  Grow(attended_, rows_ * spec_.query_size());
  Grow(k_, rows_ * spec_.key_size());
  Grow(v_, rows_ * spec_.key_size());
  ResizeRounded();
}

void Forward::ResizeRounded() {
  narrow_.Resize(rows_, spec_.hidden_size);
  queries_.Resize(rows_, spec_.query_size());
  wide_.Resize(rows_, spec_.intermediate_size);
}

void Forward::Embed() {
  const Tensor& embedding = *model_.weights().embedding;
  const int64_t hidden = spec_.hidden_size;
  ForRows([&](int64_t row) {
    float* to = hidden_.data() + row * hidden;
    DequantizeRow(embedding.type, embedding.data + tokens_[row] * embedding.row_bytes(), hidden,
                  to);
    for (int64_t i = 0; i < hidden && spec_.embedding_scale != 1; ++i) {
      to[i] *= spec_.embedding_scale;
    }
  });
}

void Forward::NormRoundRows(const std::vector<float>& weight) {
  const Norm norm = NormOf(weight);
  ForRows([&](int64_t row) {
    NormRoundRow(hidden_.data() + row * spec_.hidden_size, norm, row, narrow_);
  });
}

// Bias, norm and RoPE on x [rows, heads, head_dim]: what follows the product for queries or keys.
void Forward::FinishHeads(int64_t index, const std::vector<float>& bias,
                          const std::vector<float>& weight, int64_t heads, std::vector<float>& x) {
  const int64_t size = spec_.head_dim;
  const RopeAngles& angles = angles_[SpecOf(index).rope];
  const Norm norm = NormOf(weight);
  ForRows([&](int64_t row) {
    float* at = x.data() + row * heads * size;
    if (!bias.empty()) {
      AddRow(bias.data(), heads * size, at);
    }
    const float* turn = angles.At(positions_[row]);
    for (int64_t head = 0; head < heads; ++head, at += size) {
      if (weight.empty()) {
        RopeRow(turn, size, at);
      } else {
        NormRopeRow(norm, turn, size, at);
      }
    }
  });
}

void Forward::WriteKeysAndValues(int64_t index) {
  const Stopwatch watch;
  for (size_t i = 0; i < batch_.size(); ++i) {
    const auto count = static_cast<int64_t>(batch_[i].tokens.size());
    const int64_t first = cu_q_lens_[i] * spec_.key_size();
    cache_.Write(index, batch_[i].sequence, batch_[i].start,
                 Heads(k_.data() + first, count, spec_.kv_heads, spec_.head_dim),
                 Heads(v_.data() + first, count, spec_.kv_heads, spec_.head_dim), {.pool = pool_});
  }
  if (index == 0) {  // the first write may have copied shared pages
    cache_.Batch(sequences_, kv_batch_);
    ForgetPlans();
  }
  attention_seconds_ += watch.seconds();
}

void Forward::Attend(int64_t index) {
  const Stopwatch watch;
  const LayerSpec& layer = SpecOf(index);
  const HeadsView q = Heads(q_.data(), rows_, spec_.q_heads, spec_.head_dim);
  AttentionOptions options;
  options.scale = layer.attention_scale;
  options.soft_cap = layer.attention_soft_cap;
  options.window = layer.window;
  options.pool = pool_;
  SharedPlan& shared = plans_[plan_of_layer_[static_cast<size_t>(index)]];
  if (!shared.made) {
    shared.plan.Make(q, cache_.Keys(index),
                     {cu_q_lens_, kv_batch_.kv_lens, kv_batch_.page_table.data(),
                      kv_batch_.max_pages, kv_batch_.max_pages},
                     options);
    shared.made = true;
  }
  PagedAttention(q, cache_.Keys(index), cache_.Values(index), shared.plan,
                 {attended_.data(), spec_.query_size(), spec_.head_dim}, options);
  attention_seconds_ += watch.seconds();
}

void Forward::Attention(int64_t index) {
  const Layer& layer = WeightsOf(index);
  const bool last = index == spec_.layer_count() - 1;
  NormRoundRows(layer.attention_norm);
  const int64_t keys = spec_.key_size();
  const Product products[] = {{&layer.k, k_.data(), keys},
                              {&layer.v, v_.data(), keys},
                              {&layer.q, q_.data(), spec_.query_size()}};
  Multiply(narrow_, std::span(products).first(last ? 2 : 3), pool_);
  FinishHeads(index, layer.k_bias, layer.k_norm, spec_.kv_heads, k_);
  if (!layer.v_bias.empty()) {
    ForRows([&](int64_t row) { AddRow(layer.v_bias.data(), keys, v_.data() + row * keys); });
  }
  WriteKeysAndValues(index);
  if (last) {
    KeepLast();
    NormRoundRows(layer.attention_norm);
    Multiply(narrow_, std::span(products).subspan(2), pool_);
  }
  FinishHeads(index, layer.q_bias, layer.q_norm, spec_.q_heads, q_);
  Attend(index);
}

void Forward::ForgetPlans() {
  for (SharedPlan& shared : plans_) {
    shared.made = false;
  }
}

// Drops all rows but the last of each slice.
void Forward::KeepLast() {
  const int64_t hidden = spec_.hidden_size;
  rows_ = static_cast<int64_t>(batch_.size());
  for (int64_t i = 0; i < rows_; ++i) {
    const int64_t row = cu_q_lens_[i + 1] - 1;
    std::copy_n(hidden_.data() + row * hidden, hidden, hidden_.data() + i * hidden);
    positions_[i] = positions_[row];
  }
  std::iota(cu_q_lens_.begin(), cu_q_lens_.end(), 0);
  ForgetPlans();
  ResizeRounded();
}

// Adds `out_` to a row of the residual stream, normed first if the layer does so.
void Forward::AddToStream(const std::vector<float>& post_norm, int64_t row) {
  const int64_t hidden = spec_.hidden_size;
  const float* x = out_.data() + row * hidden;
  float* stream = hidden_.data() + row * hidden;
  if (post_norm.empty()) {
    AddRow(x, hidden, stream);
  } else {
    AddNormRow(x, NormOf(post_norm), hidden, stream);
  }
}

// From the attention's result to the end of the layer.
void Forward::FeedForward(int64_t index) {
  const Layer& layer = WeightsOf(index);
  const int64_t hidden = spec_.hidden_size;
  const int64_t queries = spec_.query_size();
  ForRows([&](int64_t row) { RoundRow(attended_.data() + row * queries, row, queries_); });
  const Product output[] = {{&layer.o, out_.data(), hidden}};
  Multiply(queries_, output, pool_);
  ForRows([&](int64_t row) {
    if (!layer.o_bias.empty()) {
      AddRow(layer.o_bias.data(), hidden, out_.data() + row * hidden);
    }
    AddToStream(layer.post_attention_norm, row);
    NormRoundRow(hidden_.data() + row * hidden, NormOf(layer.ffn_norm), row, narrow_);
  });
  MultiplyGated(narrow_, layer.gate, layer.up, SpecOf(index).activation, wide_, pool_);
  const Product down[] = {{&layer.down, out_.data(), hidden}};
  Multiply(wide_, down, pool_);
  ForRows([&](int64_t row) { AddToStream(layer.post_ffn_norm, row); });
}

std::span<const float> Forward::Run(std::span<const Slice> batch) {
  Prepare(batch);
  Embed();
  for (int64_t layer = 0; layer < spec_.layer_count(); ++layer) {
    Attention(layer);
    FeedForward(layer);
  }
  const Norm norm = NormOf(model_.weights().output_norm);
  const int64_t hidden = spec_.hidden_size;
  ForRows([&](int64_t row) {
    NormRow(hidden_.data() + row * hidden, norm, hidden, out_.data() + row * hidden);
  });
  return {out_.data(), static_cast<size_t>(rows_ * hidden)};
}

}  // namespace riffle::engine
