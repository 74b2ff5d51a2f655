#include "engine/forward.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "engine/layers/row_kernels.h"
#include "engine/quant/blocks.h"
#include "engine/weights.h"
#include "riffle/attention.h"

namespace riffle::engine {
namespace {

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Rows a task takes: a row's norms take 0.3 to 2 us.
constexpr int64_t kRowsPerTask = 4;

void Grow(std::vector<float>& values, int64_t size) {
  if (static_cast<int64_t>(values.size()) < size) {
    values.resize(static_cast<size_t>(size));
  }
}

HeadsView Heads(const std::vector<float>& data, int64_t rows, int64_t heads, int64_t head_dim) {
  return {data.data(), DType::kF32, rows, heads, head_dim, heads * head_dim, head_dim};
}

}  // namespace

Forward::Forward(const Model& model, KvCache& cache, ThreadPool* pool)
    : model_(model),
      cache_(cache),
      pool_(pool),
      local_(model.config().head_dim, model.config().rope_base_local),
      global_(model.config().head_dim, model.config().rope_base_global) {
  [[maybe_unused]] const std::string target = Target();  // applies RIFFLE_TARGET
}
Forward::~Forward() = default;

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
  const Config& config = model_.config();
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
  local_.Grow(last);
  global_.Grow(last);

  const int64_t queries = config.q_heads * config.head_dim;
  const int64_t keys = config.kv_heads * config.head_dim;
  Grow(hidden_, rows_ * config.hidden_size);
  Grow(out_, rows_ * config.hidden_size);
  Grow(q_, rows_ * queries);
  Grow(attended_, rows_ * queries);
  Grow(k_, rows_ * keys);
  Grow(v_, rows_ * keys);
  ResizeRounded();
}

void Forward::ResizeRounded() {
  const Config& config = model_.config();
  narrow_.Resize(rows_, config.hidden_size);
  queries_.Resize(rows_, config.q_heads * config.head_dim);
  wide_.Resize(rows_, config.intermediate_size);
}

void Forward::Embed() {
  const Config& config = model_.config();
  const WeightView& embedding = model_.weights().embedding;
  const float scale = std::sqrt(static_cast<float>(config.hidden_size));
  const int64_t row_bytes = embedding.row_stride * kQ8BlockBytes;
  ForRows([&](int64_t row) {
    float* to = hidden_.data() + row * config.hidden_size;
    DequantizeRow(TensorType::kQ8_0,
                  static_cast<const uint8_t*>(embedding.data) + tokens_[row] * row_bytes,
                  config.hidden_size, to);
    for (int64_t i = 0; i < config.hidden_size; ++i) {
      to[i] *= scale;
    }
  });
}

void Forward::NormRoundRows(const std::vector<float>& weight) {
  const Config& config = model_.config();
  const Norm norm = {weight.data(), static_cast<float>(config.rms_epsilon)};
  ForRows([&](int64_t row) {
    NormRoundRow(hidden_.data() + row * config.hidden_size, norm, row, narrow_);
  });
}

void Forward::NormRopeRows(int64_t index, const std::vector<float>& weight, int64_t heads,
                           std::vector<float>& x) {
  const Config& config = model_.config();
  const int64_t size = config.head_dim;
  const Norm norm = {weight.data(), static_cast<float>(config.rms_epsilon)};
  const RopeAngles& angles = config.IsGlobal(index) ? global_ : local_;
  ForRows([&](int64_t row) {
    for (int64_t head = 0; head < heads; ++head) {
      NormRopeRow(norm, angles.At(positions_[row]), size, x.data() + (row * heads + head) * size);
    }
  });
}

void Forward::WriteKeysAndValues(int64_t index) {
  const auto start = Clock::now();
  const Config& config = model_.config();
  const int64_t keys = config.kv_heads * config.head_dim;
  for (size_t i = 0; i < batch_.size(); ++i) {
    const int64_t count = static_cast<int64_t>(batch_[i].tokens.size());
    HeadsView k = Heads(k_, count, config.kv_heads, config.head_dim);
    HeadsView v = Heads(v_, count, config.kv_heads, config.head_dim);
    k.data = k_.data() + cu_q_lens_[i] * keys;
    v.data = v_.data() + cu_q_lens_[i] * keys;
    cache_.Write(index, batch_[i].sequence, batch_[i].start, k, v, {.pool = pool_});
  }
  if (index == 0) {  // now, since the first write copies the pages that are shared
    cache_.Batch(sequences_, kv_batch_);
    ForgetPlans();
  }
  attention_seconds_ += Since(start);
}

void Forward::Attend(int64_t index) {
  const auto start = Clock::now();
  const Config& config = model_.config();
  const HeadsView q = Heads(q_, rows_, config.q_heads, config.head_dim);
  AttentionOptions options;
  if (!config.IsGlobal(index)) {
    options.window = config.sliding_window;
  }
  options.pool = pool_;
  LayerPlan& layer = config.IsGlobal(index) ? global_plan_ : local_plan_;
  if (!layer.made) {
    layer.plan.Make(q, cache_.Keys(index),
                    {cu_q_lens_, kv_batch_.kv_lens, kv_batch_.page_table.data(),
                     kv_batch_.max_pages, kv_batch_.max_pages},
                    options);
    layer.made = true;
  }
  PagedAttention(q, cache_.Keys(index), cache_.Values(index), layer.plan,
                 {attended_.data(), config.q_heads * config.head_dim, config.head_dim}, options);
  attention_seconds_ += Since(start);
}

void Forward::Attention(int64_t index) {
  const Config& config = model_.config();
  const Layer& layer = model_.weights().layers[static_cast<size_t>(index)];
  const bool last = index == config.layers - 1;
  NormRoundRows(layer.attention_norm);
  const int64_t keys = config.kv_heads * config.head_dim;
  const Product products[] = {{&layer.k, k_.data(), keys},
                              {&layer.v, v_.data(), keys},
                              {&layer.q, q_.data(), config.q_heads * config.head_dim}};
  Multiply(narrow_, std::span(products).first(last ? 2 : 3), pool_);
  NormRopeRows(index, layer.k_norm, config.kv_heads, k_);
  WriteKeysAndValues(index);
  if (last) {
    KeepLast();
    NormRoundRows(layer.attention_norm);
    Multiply(narrow_, std::span(products).subspan(2), pool_);
  }
  NormRopeRows(index, layer.q_norm, config.q_heads, q_);
  Attend(index);
}

void Forward::ForgetPlans() { local_plan_.made = global_plan_.made = false; }

// Only the last token of each slice goes on.
void Forward::KeepLast() {
  const Config& config = model_.config();
  const int64_t hidden = config.hidden_size;
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

// From the attention's result to the end of the layer.
void Forward::FeedForward(int64_t index) {
  const Config& config = model_.config();
  const Layer& layer = model_.weights().layers[static_cast<size_t>(index)];
  const int64_t hidden = config.hidden_size;
  const int64_t queries = config.q_heads * config.head_dim;
  const float epsilon = static_cast<float>(config.rms_epsilon);
  ForRows([&](int64_t row) { RoundRow(attended_.data() + row * queries, row, queries_); });
  const Product output[] = {{&layer.o, out_.data(), hidden}};
  Multiply(queries_, output, pool_);
  ForRows([&](int64_t row) {
    float* stream = hidden_.data() + row * hidden;
    AddNormRow(out_.data() + row * hidden, {layer.post_attention_norm.data(), epsilon}, hidden,
               stream);
    NormRoundRow(stream, {layer.ffn_norm.data(), epsilon}, row, narrow_);
  });
  MultiplyGated(narrow_, layer.gate, layer.up, wide_, pool_);
  const Product down[] = {{&layer.down, out_.data(), hidden}};
  Multiply(wide_, down, pool_);
  ForRows([&](int64_t row) {
    AddNormRow(out_.data() + row * hidden, {layer.post_ffn_norm.data(), epsilon}, hidden,
               hidden_.data() + row * hidden);
  });
}

std::span<const float> Forward::Run(std::span<const Slice> batch) {
  const Config& config = model_.config();
  Prepare(batch);
  Embed();
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    Attention(layer);
    FeedForward(layer);
  }
  const Norm norm = {model_.weights().output_norm.data(), static_cast<float>(config.rms_epsilon)};
  ForRows([&](int64_t row) {
    NormRow(hidden_.data() + row * config.hidden_size, norm, config.hidden_size,
            out_.data() + row * config.hidden_size);
  });
  return {out_.data(), static_cast<size_t>(rows_ * config.hidden_size)};
}

}  // namespace riffle::engine
