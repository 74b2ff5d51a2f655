// Allowed columns, biases, penalties and the best log-probabilities, against arithmetic in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "riffle/error.h"
#include "riffle/sampling.h"
#include "sampling/adjust.h"
#include "testing/error_check.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/sampling_reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kRows = 4;

struct Lists {
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets = {0};
  TokenLists view() const { return {tokens, offsets}; }
};

Lists MakeLists(int64_t n, int64_t most, Rng& rng) {
  Lists lists;
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t count = row == 1 ? 0 : rng.Between(1, most);
    for (int64_t i = 0; i < count; ++i) {
      lists.tokens.push_back(static_cast<int32_t>(rng.Below(static_cast<uint64_t>(n))));
    }
    lists.offsets.push_back(static_cast<int64_t>(lists.tokens.size()));
  }
  return lists;
}

struct Adjustments {
  std::vector<int32_t> allowed;
  Lists biased, prompt, output;
  std::vector<float> bias;
  std::vector<float> repetition = {1.3f, 2, 0.7f, 1}, frequency = {0.5f, 0, -0.25f, 1},
                     presence = {0.25f, 1, 0, 2};

  Adjustments(int64_t n, Rng& rng)
      : biased(MakeLists(n, 20, rng)),
        prompt(MakeLists(n, 60, rng)),
        output(MakeLists(n, 60, rng)) {
    output.tokens[0] = output.tokens[1] = prompt.tokens[0];  // more than once, and in both
    for (size_t i = 0; i < biased.tokens.size(); ++i) {
      bias.push_back(i % 5 == 0 ? -kInf : static_cast<float>(rng.Between(-3, 3)));
    }
    for (int64_t i = 0; i < kRows * ((n + 31) / 32); ++i) {
      allowed.push_back(i % 3 == 0   ? -1
                        : i % 7 == 0 ? 0
                                     : static_cast<int32_t>(rng.Below(1u << 31)));
    }
  }

  SampleOptions options(int64_t n) const {
    SampleOptions options;
    options.allowed = {allowed.data(), (n + 31) / 32};
    options.bias_tokens = biased.view();
    options.bias = bias;
    options.repetition_penalty = repetition;
    options.frequency_penalty = frequency;
    options.presence_penalty = presence;
    options.prompt_tokens = prompt.view();
    options.output_tokens = output.view();
    return options;
  }

  std::vector<float> Apply(const MatrixView& x) const {
    std::vector<float> y;
    for (int64_t row = 0; row < kRows; ++row) {
      const auto r = static_cast<size_t>(row);
      std::vector<float> z;
      for (int64_t i = 0; i < x.cols; ++i) {
        const int32_t word = allowed[static_cast<size_t>(row * ((x.cols + 31) / 32) + i / 32)];
        z.push_back((static_cast<uint32_t>(word) >> (i % 32) & 1) != 0
                        ? static_cast<float>(Decode(x.dtype, ElementAt(x, row, i)))
                        : -kInf);
      }
      const auto each = [&](const Lists& lists, const auto& f) {
        for (int64_t i = lists.offsets[r]; i < lists.offsets[r + 1]; ++i) {
          f(static_cast<size_t>(lists.tokens[static_cast<size_t>(i)]), static_cast<size_t>(i));
        }
      };
      each(biased, [&](size_t token, size_t i) { z[token] += bias[i]; });
      std::map<size_t, int> counts;
      each(prompt, [&](size_t token, size_t) { counts[token] += 0; });
      each(output, [&](size_t token, size_t) { counts[token] += 1; });
      for (const auto& [token, count] : counts) {
        z[token] = z[token] >= 0 ? z[token] / repetition[r] : z[token] * repetition[r];
        z[token] -= frequency[r] * static_cast<float>(count);
        if (count > 0) z[token] -= presence[r];
      }
      y.insert(y.end(), z.begin(), z.end());
    }
    return y;
  }
};

TEST(SampleAdjustments, ADrawIsOneFromAdjustedLogits) {
  Rng rng(5);
  for (const int64_t n : {70, 1000, 3001, 20000}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      const Input input({Distribution::kNormal, dtype, kRows, n, n + 3, 8, 1, true, 3});
      const Adjustments adjustments(n, rng);
      const std::vector<float> adjusted = adjustments.Apply(input.view());
      for (const float top_p : {1.0f, 0.8f}) {
        for (const int threads : {1, 3}) {
          SampleOptions options = adjustments.options(n);
          options.top_p = {&top_p, 1};
          options.seed = 11;
          options.pool = &PoolOf(threads);
          std::vector<int32_t> tokens(kRows), expected(kRows);
          std::vector<float> logprobs(kRows);
          Sample(input.view(), tokens, logprobs, options);
          Sample(View(adjusted.data(), kRows, n), expected, {.top_p = {&top_p, 1}, .seed = 11});
          EXPECT_EQ(tokens, expected) << n;
          for (size_t row = 0; row < kRows; ++row) {
            const double truth =
                ReferenceLogProb(input.view(), static_cast<int64_t>(row), tokens[row]);
            EXPECT_NEAR(static_cast<double>(logprobs[row]), truth, 1e-6 * (1 + std::abs(truth)));
          }
        }
      }
    }
  }
}

// A row in which nothing is allowed has no answer; it harms no other.
TEST(SampleAdjustments, NothingAllowed) {
  const std::vector<float> x(2 * 40, 1);
  const int32_t words[] = {0, 0, 0, 1 << 7};
  std::vector<int32_t> tokens(2);
  Sample(View(x.data(), 2, 40), tokens, {.on_invalid = InvalidRow::kToken, .allowed = {words, 2}});
  EXPECT_EQ(tokens, (std::vector<int32_t>{-1, 39}));
  ExpectError(Code::kBadValue, {"logits[0]", "-inf"}, [&] {
    Sample(View(x.data(), 2, 40), tokens, {.allowed = {words, 2}});
  });
}

TEST(SampleTopLogProbs, AreTheBestOfTheRawLogits) {
  OnEveryTarget([](const std::string&) {
    for (const int64_t n : {9, 3001}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        const Input input({Distribution::kNormal, dtype, kRows, n, n, 8, 1, true, 3});
        for (const int64_t k : {1, 9}) {
          std::vector<float> values(static_cast<size_t>(kRows * (k + 2)), 7);
          std::vector<int32_t> best(values.size(), 7), tokens(kRows), expected(kRows);
          std::vector<float> logprobs(kRows), expected_logprobs(kRows);
          const TopLogProbs top{k, {values.data(), k + 2}, {best.data(), k + 2}};
          Sample(input.view(), tokens, logprobs, top, {.seed = 2});
          Sample(input.view(), expected, expected_logprobs, {.seed = 2});
          EXPECT_EQ(tokens, expected);
          EXPECT_EQ(logprobs, expected_logprobs);
          for (int64_t row = 0; row < kRows; ++row) {
            const std::vector<int32_t> truth = ReferenceTopK(input.view(), row, 0, n, k);
            for (int64_t i = 0; i < k + 2; ++i) {
              const auto at = static_cast<size_t>(row * (k + 2) + i);
              if (i >= k) {
                EXPECT_EQ(best[at], 7);
                continue;
              }
              EXPECT_EQ(best[at], truth[static_cast<size_t>(i)]);
              EXPECT_NEAR(static_cast<double>(values[at]),
                          ReferenceLogProb(input.view(), row, best[at]), 2e-6 * 20);
            }
          }
        }
      }
    }
  });
}

// Front ends always pass penalties. Those that change nothing must not have the logits copied.
TEST(SampleAdjustments, NeutralPenaltiesAreNone) {
  const float ones[] = {1, 1}, zeros[] = {0, 0}, other[] = {1, 0.5f};
  EXPECT_FALSE(sampling::Adjusts({}));
  EXPECT_FALSE(sampling::Adjusts(
      {.repetition_penalty = ones, .frequency_penalty = zeros, .presence_penalty = zeros}));
  EXPECT_TRUE(sampling::Adjusts({.repetition_penalty = other}));
  EXPECT_TRUE(sampling::Adjusts({.frequency_penalty = other}));
  EXPECT_TRUE(sampling::Adjusts({.presence_penalty = other}));
}

TEST(SampleAdjustments, Errors) {
  std::vector<float> x(2 * 10, 1);
  std::vector<int32_t> tokens(2, -7);
  const auto expect = [&](Code code, const std::vector<std::string>& words,
                          const SampleOptions& options) {
    ExpectError(code, words, [&] { Sample(View(x.data(), 2, 10), tokens, options); });
    EXPECT_EQ(tokens, std::vector<int32_t>(2, -7));
  };
  const int32_t good[] = {1, 2}, bad[] = {1, 10};
  const int64_t offsets[] = {0, 1, 2}, falling[] = {0, 2, 1}, two[] = {0, 2}, few[] = {0, 1, 1};
  const float nan = std::nanf(""), zero = 0, values[] = {1, kInf};
  expect(Code::kBadValue, {"prompt_tokens[1]", "10", "0..9"}, {.prompt_tokens = {bad, offsets}});
  expect(Code::kBadValue, {"output_tokens", "offsets[2]"}, {.output_tokens = {good, falling}});
  expect(Code::kBadShape, {"output_tokens", "2 offsets"}, {.output_tokens = {good, two}});
  expect(Code::kBadShape, {"output_tokens", "last offset"}, {.output_tokens = {good, few}});
  expect(Code::kBadOption, {"repetition_penalty[0]", "0"}, {.repetition_penalty = {&zero, 1}});
  expect(Code::kBadOption, {"presence_penalty[0]", "nan"}, {.presence_penalty = {&nan, 1}});
  expect(Code::kBadShape, {"frequency_penalty", "3"},
         {.frequency_penalty = std::vector<float>{1, 1, 1}});
  expect(Code::kBadShape, {"logit_bias", "values"}, {.bias_tokens = {good, offsets}});
  expect(Code::kBadOption, {"logit_bias", "values[1]"},
         {.bias_tokens = {good, offsets}, .bias = values});
  std::vector<float> out(40);
  ExpectError(Code::kBadOption, {"top_logprobs", "11", "0..10"}, [&] {
    Sample(View(x.data(), 2, 10), tokens, {}, {11, {out.data(), 11}, {tokens.data(), 11}}, {});
  });
}

}  // namespace
}  // namespace riffle::test
