#include "sampling/logprobs.h"

#include <algorithm>
#include <limits>

#include "core/element.h"
#include "core/lease.h"
#include "riffle/topk.h"
#include "sampling/sampling_plan.h"

namespace riffle::sampling {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

const uint8_t* RowData(const MatrixView& x, int64_t row) {
  return static_cast<const uint8_t*>(x.data) +
         row * x.row_stride * static_cast<int64_t>(SizeOf(x.dtype));
}

}  // namespace

RawLogProbs::Layout RawLogProbs::Plan(const MatrixView& logits, int64_t k) {
  const int64_t width = std::max<int64_t>(k, 1);
  const auto element = static_cast<int64_t>(SizeOf(logits.dtype));
  core::ScratchLayout layout;
  Layout plan;
  plan.values = layout.Place<uint8_t>(logits.rows * width * element);
  plan.indices = layout.Place<int32_t>(logits.rows * width);
  plan.sums = layout.Place<double>(logits.rows * SumBlocks(logits.cols));
  plan.bytes = layout.bytes();
  return plan;
}

size_t RawLogProbs::Bytes(const MatrixView& logits, int64_t k) { return Plan(logits, k).bytes; }

RawLogProbs::RawLogProbs(const MatrixView& logits, int64_t k, ThreadPool* pool, uint8_t* memory)
    : logits_(logits), width_(std::max<int64_t>(k, 1)), blocks_(SumBlocks(logits.cols)) {
  HWY_DASSERT(logits.rows > 0 && k <= logits.cols);
  const int64_t rows = logits.rows;
  const Layout layout = Plan(logits, k);
  values_ = layout.values.At(memory);
  indices_ = layout.indices.At(memory);
  sums_ = layout.sums.At(memory);
  TopK(logits, width_, {values_, width_, indices_, width_}, {.pool = pool});
  const SamplingKernels& kernels = GetSamplingKernels();
  core::Lease lease(pool);
  lease.Run(rows * blocks_, [&](int64_t i, uint8_t*) {
    const int64_t row = i / blocks_;
    const int64_t begin = i % blocks_ * kSumBlock;
    const float max = Value(row, 0);
    const bool valid = !std::isnan(max) && max != -std::numeric_limits<float>::infinity();
    const WeightRow weights{RowData(logits_, row), logits_.dtype, max, kRawScale, 1};
    sums_[i] = valid ? kernels.sum_weights(weights, nullptr, begin,
                                           std::min(begin + kSumBlock, logits_.cols))
                     : std::numeric_limits<double>::quiet_NaN();
  });
}

float RawLogProbs::Value(int64_t row, int64_t i) const {
  return core::LoadElement(logits_.dtype,
                           values_ + static_cast<size_t>(row * width_ + i) * SizeOf(logits_.dtype));
}

double RawLogProbs::Sum(int64_t row) const {
  double sum = 0;
  for (int64_t block = 0; block < blocks_; ++block) {
    sum += sums_[row * blocks_ + block];
  }
  return sum;
}

void RawLogProbs::Write(std::span<const int32_t> tokens, std::span<float> logprobs,
                        const TopLogProbs& top) const {
  for (int64_t row = 0; row < logits_.rows; ++row) {
    const double sum = Sum(row);
    const float max = Value(row, 0);
    if (!logprobs.empty()) {
      const auto r = static_cast<size_t>(row);
      const int64_t token = std::max(tokens[r], 0);
      const float x =
          core::LoadElement(logits_.dtype, RowData(logits_, row) +
                                               static_cast<size_t>(token) * SizeOf(logits_.dtype));
      logprobs[r] = tokens[r] < 0 ? kNaN : LogSoftmax(x, max, sum);
    }
    for (int64_t i = 0; i < top.k; ++i) {
      top.logprobs.data[row * top.logprobs.row_stride + i] = LogSoftmax(Value(row, i), max, sum);
      top.tokens.data[row * top.tokens.row_stride + i] =
          std::isnan(sum) ? -1 : indices_[row * width_ + i];
    }
  }
}

}  // namespace riffle::sampling
