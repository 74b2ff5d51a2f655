// The 5 best of each row of logits, checked against std::partial_sort.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

#include "riffle/riffle.h"

int main() {
  constexpr int64_t kRows = 4, kVocab = 50000, kBest = 5;
  std::vector<float> logits(kRows * kVocab);
  std::mt19937 random(1);
  // Rounded, so that equal values occur: the lower index comes first then.
  std::normal_distribution<float> normal;
  for (float& logit : logits) logit = std::nearbyint(normal(random) * 64) / 64;

  std::vector<float> values(kRows * kBest);
  std::vector<int32_t> indices(kRows * kBest);
  riffle::TopK(riffle::View(logits.data(), kRows, kVocab), kBest,
               riffle::View(values.data(), indices.data(), kBest));

  for (int64_t row = 0; row < kRows; ++row) {
    const float* x = logits.data() + row * kVocab;
    std::vector<int32_t> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + kBest, order.end(),
                      [x](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    std::printf("row %d:", static_cast<int>(row));
    for (int64_t i = 0; i < kBest; ++i) {
      const int64_t at = row * kBest + i;
      std::printf("  %d: %g", indices[at], values[at]);
      if (indices[at] != order[i] || values[at] != x[order[i]]) {
        std::printf("\nplace %d should be %d\n", static_cast<int>(i), order[i]);
        return 1;
      }
    }
    std::printf("\n");
  }
}
