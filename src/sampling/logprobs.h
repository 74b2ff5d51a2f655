// Log-probabilities of raw logits.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "core/scratch_layout.h"
#include "riffle/sampling.h"
#include "sampling/sampling_kernels.h"

namespace riffle::sampling {

// The log-softmax at x of a row whose best column is `max`, and whose weights, relative to that,
// sum to `sum`.
inline float LogSoftmax(float x, float max, double sum) {
  const double below = x == max ? 0 : static_cast<double>(x) - static_cast<double>(max);
  return static_cast<float>(below - std::log(sum));
}

// A pass over the logits for the best log-probabilities, and for those of tokens that are drawn
// from other logits.
class RawLogProbs {
 public:
  static size_t Bytes(const MatrixView& logits, int64_t k);

  // Finds the k best columns of each row and sums its weights, in `memory` of that many bytes. Pre:
  // rows > 0.
  RawLogProbs(const MatrixView& logits, int64_t k, ThreadPool* pool, uint8_t* memory);

  // Writes the tokens' log-probabilities (NaN for token -1) if `logprobs` is not empty, and `top`.
  void Write(std::span<const int32_t> tokens, std::span<float> logprobs,
             const TopLogProbs& top) const;

 private:
  float Value(int64_t row, int64_t i) const;
  double Sum(int64_t row) const;  // NaN for a row that has no distribution

  struct Layout {
    core::ScratchArray<uint8_t> values;
    core::ScratchArray<int32_t> indices;
    core::ScratchArray<double> sums;
    size_t bytes;
  };
  static Layout Plan(const MatrixView& logits, int64_t k);

  MatrixView logits_;
  int64_t width_;
  int64_t blocks_;
  uint8_t* values_;   // [rows, width]
  int32_t* indices_;  // [rows, width]
  double* sums_;      // [rows, blocks]
};

}  // namespace riffle::sampling
