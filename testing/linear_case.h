// A call of Linear, and its answer by scalar loops in double that share no code with src/lm_head.
// Memory that the call must not depend on is NaN, or faults when it is touched.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "riffle/linear_topk.h"
#include "testing/buffers.h"

namespace riffle::test {

enum class LinearData : uint8_t {
  kNormal,
  kTies,       // a few small integers: many logits are equal, and every sum is exact
  kNonFinite,  // some weights are NaN or infinite
  kDenormals,  // some weights and inputs are denormal, some products underflow
  kConstant,   // all inputs 1, all weights 0.1: the rounding errors of a sum all have the same sign
  kCancelling,  // sums near zero of both signs, and exactly zero
};
inline constexpr LinearData kAllLinearData[] = {LinearData::kNormal,    LinearData::kTies,
                                                LinearData::kNonFinite, LinearData::kDenormals,
                                                LinearData::kConstant,  LinearData::kCancelling};

struct LinearSpec {
  int64_t rows = 3;
  int64_t d = 64;
  int64_t vocab = 100;
  DType x_dtype = DType::kF32;
  WeightFormat format = WeightFormat::kF32;
  bool transposed = false;
  std::optional<DType> bias = {};
  bool round_x = false;
  LinearData data = LinearData::kNormal;
  int64_t x_gap = 0;       // elements between rows of x
  int64_t weight_gap = 0;  // elements (blocks) between rows (transposed: columns) of W
  bool backwards = false;  // negative strides of x and W
  int shift = 0;           // bytes by which every array is misaligned
  uint64_t seed = 1;
};

std::string Describe(const LinearSpec& spec);

class LinearCase {
 public:
  explicit LinearCase(const LinearSpec& spec);

  const LinearSpec& spec() const { return spec_; }
  const MatrixView& x() const { return x_; }
  const WeightView& weight() const { return weight_; }
  LinearOptions options(ThreadPool* pool = nullptr) const;

  // Makes the call on the target in use. *fault is empty, or names bytes written outside of y.
  std::vector<float> Run(ThreadPool* pool, std::string* fault) const;
  // The same call for rows [begin, begin + rows) alone.
  std::vector<float> RunRows(int64_t begin, int64_t rows, ThreadPool* pool) const;

  // Empty if every element is within its error bound of the sum in double.
  std::string Check(const std::vector<float>& y) const;

 private:
  struct Expected {
    double value;  // may be NaN or infinite
    double bound;  // how far from `value` an answer may be
  };
  void MakeX();
  void MakeWeight();
  void StoreWeight(int64_t row, int64_t col, float value);
  Expected Reference(int64_t row, int64_t column) const;

  LinearSpec spec_;
  std::vector<double> x_values_, weight_values_, bias_values_;  // exact; [rows][d], [vocab][d]
  std::vector<double> scale_values_;  // Q8_0: [vocab][d / 32]; weight_values_ are the integers
  GuardedBuffer x_bytes_, weight_bytes_, bias_bytes_;
  MatrixView x_;
  WeightView weight_;
  BiasView bias_;
};

}  // namespace riffle::test
