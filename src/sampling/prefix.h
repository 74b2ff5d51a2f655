// Running sums of weights, in double and in order.
#pragma once

#include <cstdint>

namespace riffle::sampling {

// The smallest n >= 1 for which weights[0, n) sum to `mass` or more; count + 1 if there is none.
inline int64_t PrefixLengthReaching(const float* weights, int64_t count, double mass) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += static_cast<double>(weights[i]);
    if (sum >= mass) {
      return i + 1;
    }
  }
  return count + 1;
}

inline double Sum(const float* weights, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += static_cast<double>(weights[i]);
  }
  return sum;
}

// The first element at which the running sum exceeds `place`. If rounding keeps the sum from
// exceeding it, the last element with a weight above 0.
inline int64_t IndexAtMass(const float* weights, int64_t count, double place) {
  double sum = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += static_cast<double>(weights[i]);
    last = weights[i] > 0 ? i : last;
    if (sum > place) {
      return i;
    }
  }
  return last;
}

}  // namespace riffle::sampling
