// The answer of an AttentionCase in double, and bounds of the error of f32 arithmetic.
//
// With u = 2^-24, the bounds follow the arithmetic (docs/attention.md):
//   a score is a chain of d products and sums: |error| <= (2 d + 8) u sum |q_i k_i| |scale|
//   tanh and 2^x have a few ulp; the logit in units of log2 and the largest one are rounded:
//     a weight's relative error is delta_j <= |error of the logit| + 8 u (|logit| + |largest|) + 16
//     u
//   weights and weighted values are summed in chains of at most 512 keys, 2 n / 512 + 8 states are
//     merged: relative error gamma = (512 + n / 64 + 64) u of the sum of magnitudes
//   where q and KV are bf16, weights may be rounded to bf16 before they multiply values: 2^-8
//   with scales, either an element is rounded up to three times when it is decoded, or its score or
//     its weight is: 4 u; weights times scales may underflow before they multiply codes
//   the result is rounded to its dtype.
#include <algorithm>
#include <cmath>
#include <limits>

#include "testing/attention_case.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

constexpr double kU = 0x1p-24;
constexpr double kInf = std::numeric_limits<double>::infinity();

// The relative error of an element of keys or values. A code of at most 8 bits times a scale of 16
// bits is exact in f32; otherwise an f32 scale, its divisor and the product are rounded.
double Dequantisation(const KvCoding& coding) {
  return coding.scaling == Scaling::kNone && coding.format == KvFormat::kPlain ? 0 : 4 * kU;
}

// Whether bf16 holds the elements without their scales, so that weights may be rounded to bf16.
bool FitsBF16(const KvCoding& coding) {
  return coding.format != KvFormat::kQ4_1 && coding.format != KvFormat::kQ5_1 &&
         coding.dtype != DType::kF32 && coding.dtype != DType::kF16;
}

// The largest code that a weight times a scale multiplies, which bounds what the product loses when
// it falls below the smallest normal number.
double LargestMultiplied(const KvCoding& coding) {
  return coding.dtype == DType::kE5M2 ? 0x1p16 : coding.dtype == DType::kE4M3 ? 0x1p9 : 0x1p7;
}

}  // namespace

struct AttentionCase::Row {
  int begin = 0;               // the keys it sees: begin, begin + 1, ...
  std::vector<double> weight;  // exp(logit - largest)
  std::vector<double> delta;   // relative error of a weight
  double largest = -kInf;
  double sum = 0;        // of weights, and of the sink's
  double sum_delta = 0;  // relative error of `sum`
  double gamma = 0;
};

AttentionCase::Row AttentionCase::Reference(int seq, int query, int head) const {
  const auto b = static_cast<size_t>(seq);
  const int kv_len = kv_lens_[b];
  Row row;
  double sink = -kInf;
  if (!sinks_.empty()) {
    sink = sinks_[static_cast<size_t>(head)];
  }
  row.largest = sink;
  std::vector<double> logit;
  if (kv_len > 0) {
    const int position = kv_len - spec_.q_lens[b] + query;
    int end = kv_len;
    if (spec_.causal || (spec_.window && !spec_.window_right)) {
      end = position + 1;
    } else if (spec_.window_right) {
      end = static_cast<int>(
          std::min<int64_t>(kv_len, position + 1 + std::min<int64_t>(*spec_.window_right, kv_len)));
    }
    if (spec_.window) {
      row.begin = static_cast<int>(std::max<int64_t>(0, position - *spec_.window + 1));
    }
    const double scale =
        spec_.scale ? *spec_.scale : 1.0 / std::sqrt(static_cast<double>(spec_.dim));
    const float* q =
        q_.data() + (static_cast<size_t>(cu_q_lens_[b] + query) * heads() + head) * spec_.dim;
    const double error_of_score =
        (2 * spec_.dim + 8) * kU + Dequantisation(KeyCoding(spec_));  // of a sum of magnitudes
    for (int j = row.begin; j < end; ++j) {
      const double* k =
          k_[b].data() + (static_cast<size_t>(j) * spec_.kv_heads + head / spec_.group) * spec_.dim;
      double dot = 0;
      double magnitude = 0;
      for (int i = 0; i < spec_.dim; ++i) {
        const double product = static_cast<double>(q[i]) * k[i];
        dot += product;
        magnitude += std::abs(product);
      }
      double error = error_of_score * magnitude * std::abs(scale);
      double x = dot * scale;
      if (spec_.soft_cap) {
        const double cap = *spec_.soft_cap;
        x = cap * std::tanh(x / cap);
        error += 8 * kU * std::abs(x);
      }
      logit.push_back(x);
      row.delta.push_back(error);
      row.largest = x > row.largest || std::isnan(x) ? x : row.largest;
    }
  }
  row.sum = sink == -kInf ? 0 : std::exp(sink - row.largest);
  for (size_t j = 0; j < logit.size(); ++j) {
    const double weight = std::exp(logit[j] - row.largest);
    row.delta[j] =
        std::expm1(row.delta[j] + 8 * kU * (std::abs(logit[j]) + std::abs(row.largest)) + 16 * kU);
    row.weight.push_back(weight);
    row.sum += weight;
    row.sum_delta += weight * row.delta[j];
  }
  row.gamma = (512 + static_cast<double>(logit.size()) / 64 + 64) * kU;
  row.sum_delta = row.sum > 0 ? row.sum_delta / row.sum + row.gamma : 0;
  return row;
}

void AttentionCase::AppendOutputs(const Row& row, int seq, int kv_head) const {
  const auto dim = static_cast<size_t>(ValueDim(spec_));
  if (row.weight.empty()) {
    expected_.insert(expected_.end(), dim, {0, 0});
    return;
  }
  const KvCoding coding = ValueCoding(spec_);
  const bool bf16 = spec_.q_dtype == DType::kBF16 && FitsBF16(KeyCoding(spec_)) && FitsBF16(coding);
  const double p_rounding = bf16 ? 0x1p-8 : 0;
  const double dequantisation = Dequantisation(coding);
  // Weights below 2^-126 become 0, and so do bf16 products and sums below it.
  const double vanishing = dequantisation > 0 ? 0x1p-126 * LargestMultiplied(coding) : 0x1p-124;
  struct Sums {
    double value = 0;
    double error = 0;
    double magnitude = 0;
  };
  std::vector<Sums> sums(dim);
  for (size_t j = 0; j < row.weight.size(); ++j) {
    const double weight = row.weight[j];
    const double relative_error = row.delta[j] + p_rounding;
    const double* v = v_[static_cast<size_t>(seq)].data() +
                      ((static_cast<size_t>(row.begin) + j) * spec_.kv_heads + kv_head) * dim;
    for (size_t i = 0; i < dim; ++i) {
      const double magnitude = std::abs(v[i]);
      sums[i].value += weight * v[i];
      sums[i].magnitude += weight * magnitude;
      sums[i].error += weight * magnitude * relative_error + 0x1p-125 * magnitude + vanishing;
    }
  }
  const double rounding = spec_.q_dtype == DType::kF32   ? 0x1p-24
                          : spec_.q_dtype == DType::kF16 ? 0x1p-11
                                                         : 0x1p-8;
  for (const Sums& sum : sums) {
    const double value = sum.value / row.sum;
    double bound = (sum.error + sum.magnitude * row.gamma) / row.sum +
                   std::abs(value) * row.sum_delta + 4 * kU * std::abs(value) +
                   dequantisation * sum.magnitude / row.sum;
    bound += (std::abs(value) + bound) * rounding;
    bound += spec_.q_dtype == DType::kF16 ? 0x1p-24 : 0x1p-126;
    expected_.push_back({value, bound});
  }
}

Expected AttentionCase::Lse(const Row& row) const {
  if (row.sum == 0) {
    return {-kInf, 0};
  }
  const double value = row.largest + std::log(row.sum);
  return {value, 2 * row.sum_delta + 4 * kU * (std::abs(row.largest) + std::abs(value))};
}

// Fills expected_ in the order of Compare; computed once, for all targets.
void AttentionCase::FindExpected() const {
  if (!expected_.empty()) {
    return;
  }
  for (int seq = 0; seq < static_cast<int>(kv_lens_.size()); ++seq) {
    for (int query = 0; query < spec_.q_lens[static_cast<size_t>(seq)]; ++query) {
      for (int head = 0; head < heads(); ++head) {
        const Row row = Reference(seq, query, head);
        AppendOutputs(row, seq, head / spec_.group);
        expected_.push_back(Lse(row));
      }
    }
  }
}

// Calls f(where, got, expected) for every result.
template <typename F>
void AttentionCase::Compare(const AttentionResult& result, const F& f) const {
  FindExpected();
  size_t next = 0;
  for (int token = 0; token < tokens_; ++token) {
    for (int head = 0; head < heads(); ++head) {
      for (int i = 0; i < ValueDim(spec_); ++i) {
        f([&] { return Concat("token ", token, ", head ", head, ", element ", i); },
          result.Value(token, head, i), expected_[next++]);
      }
      f([&] { return Concat("token ", token, ", head ", head, ", lse"); },
        static_cast<double>(result.lse[static_cast<size_t>(token) * heads() + head]),
        expected_[next++]);
    }
  }
}

std::string AttentionCase::Check(const AttentionResult& result) const {
  std::string first = result.damage;
  double worst = 1;
  Compare(result, [&](const auto& where, double got, const Expected& expected) {
    const bool both_nan = std::isnan(got) && std::isnan(expected.value);
    if (got == expected.value || both_nan) {
      return;
    }
    const double ratio = std::abs(got - expected.value) / expected.bound;
    if (!(ratio <= worst)) {
      worst = std::isnan(ratio) ? kInf : ratio;
      first = Concat(where(), ": ", got, " but ", expected.value, " +- ", expected.bound);
    }
  });
  return first;
}

double AttentionCase::LargestError(const AttentionResult& result) const {
  double largest = 0;
  Compare(result, [&](const auto&, double got, const Expected& expected) {
    if (got != expected.value) {
      largest = std::max(largest,
                         std::abs(got - expected.value) / std::max(1.0, std::abs(expected.value)));
    }
  });
  return largest;
}

}  // namespace riffle::test
