#include "testing/sparse_attention_reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "testing/reference.h"

namespace riffle::test {
namespace {

double ValueOfE4M3(uint8_t code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  if ((code & 127) == 127) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
  return code >= 128 ? -value : value;
}

}  // namespace

ReferenceHead ReferenceAttend(const std::vector<double>& q,
                              const std::vector<std::vector<double>>& rows, int64_t value_dim,
                              double scale, double sink) {
  ReferenceHead result;
  result.out.assign(static_cast<size_t>(value_dim), 0);
  std::vector<double> logits;
  double largest = sink;
  for (const std::vector<double>& row : rows) {
    double dot = 0;
    for (size_t i = 0; i < q.size(); ++i) {
      dot += q[i] * row[i];
    }
    logits.push_back(dot * scale);
    largest = std::isnan(logits.back()) ? logits.back() : std::max(largest, logits.back());
  }
  result.lse = largest;
  if (std::isinf(largest)) {  // no row, or a sink of +inf that takes all the weight
    return result;
  }
  double weight = std::exp(sink - largest);
  for (size_t r = 0; r < rows.size(); ++r) {
    const double p = std::exp(logits[r] - largest);
    weight += p;
    for (size_t i = 0; i < result.out.size(); ++i) {
      result.out[i] += p * rows[r][i];
    }
  }
  for (double& x : result.out) {
    x /= weight;
  }
  result.lse = largest + std::log(weight);
  return result;
}

std::vector<double> DecodeMla656(const uint8_t* row) {
  std::vector<double> values;
  for (size_t i = 0; i < 512; ++i) {
    float scale;
    std::memcpy(&scale, row + 512 + i / 128 * 4, sizeof(scale));
    values.push_back(ValueOfE4M3(row[i]) * double{scale});
  }
  for (size_t i = 0; i < 64; ++i) {
    values.push_back(Decode(DType::kBF16, row + 528 + 2 * i));
  }
  return values;
}

std::vector<double> DecodeMla584(const uint8_t* row, const uint8_t* scales) {
  std::vector<double> values;
  for (size_t i = 0; i < 448; ++i) {
    values.push_back(ValueOfE4M3(row[i]) * std::ldexp(1.0, scales[i / 64] - 127));
  }
  for (size_t i = 0; i < 64; ++i) {
    values.push_back(Decode(DType::kBF16, row + 448 + 2 * i));
  }
  return values;
}

}  // namespace riffle::test
