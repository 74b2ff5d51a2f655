// The LM head of a language model: the 8 best logits of each hidden state and a token drawn from
// them, without storing the logits. Checked against the plain product.
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "riffle/riffle.h"

int main() {
  constexpr int64_t kRows = 3, kHidden = 256, kVocab = 20000, kBest = 8;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> hidden(kRows * kHidden), weight(kVocab * kHidden);
  for (float& x : hidden) x = normal(random);
  for (float& w : weight) w = normal(random) / 16;

  const riffle::MatrixView x = riffle::View(hidden.data(), kRows, kHidden);
  riffle::WeightView head;
  head.data = weight.data();
  head.format = riffle::WeightFormat::kF32;
  head.rows = kVocab;
  head.cols = kHidden;
  head.row_stride = kHidden;
  std::vector<float> values(kRows * kBest);
  std::vector<int32_t> tokens(kRows * kBest), drawn(kRows);
  riffle::LinearTopK(x, head, kBest, {values.data(), kBest, tokens.data(), kBest});

  const std::vector<float> temperature(kRows, 0.8f);
  riffle::SampleOptions options;
  options.temperature = temperature;
  options.seed = 7;
  riffle::Sample(riffle::View(values.data(), kRows, kBest), drawn, options);

  std::vector<float> logits(kRows * kVocab), expected(kRows * kBest);
  std::vector<int32_t> expected_tokens(kRows * kBest);
  riffle::Linear(x, head, {logits.data(), kVocab});
  riffle::TopK(riffle::View(logits.data(), kRows, kVocab), kBest,
               riffle::View(expected.data(), expected_tokens.data(), kBest));
  for (int64_t row = 0; row < kRows; ++row) {
    const int32_t token = tokens[row * kBest + drawn[row]];
    std::printf("row %d: best token %d (%.3f), drawn %d\n", static_cast<int>(row),
                tokens[row * kBest], values[row * kBest], token);
  }
  if (values != expected || tokens != expected_tokens) {
    std::printf("not the bits of the plain product\n");
    return 1;
  }
}
