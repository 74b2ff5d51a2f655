// InvalidRow::kToken: a row without an answer gets token -1 and harms no other row. Seeds of rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "riffle/sampling.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<uint32_t> BitsOf(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

TEST(SampleInvalidRows, GetNoTokenAndHarmNone) {
  constexpr int64_t kRows = 8, n = 2500;
  const Input input({Distribution::kNormal, DType::kF32, kRows, n, n, 8, 0, true, 3});
  const auto* data = static_cast<const float*>(input.view().data);
  const std::vector<float> good(data, data + kRows * n);
  std::vector<float> bad = good;
  std::fill_n(bad.begin() + 1 * n, n, -kInf);
  bad[2 * n] = kNaN;
  bad[5 * n + n - 1] = -kNaN;
  std::fill_n(bad.begin() + 7 * n, n, kNaN);
  const bool invalid[kRows] = {false, true, true, false, false, true, false, true};
  struct Case {
    float temperature, top_p, min_p;
    int32_t top_k;
  };
  const Case cases[] = {{0, 1, 0, 0},     {1, 1, 0, 0},    {1, 1, 0, 30},     {1, 0.9f, 0, 0},
                        {1, 0.99f, 0, 0}, {1, 1, 0.1f, 0}, {1, 0.9f, 0, 1500}};
  OnEveryTarget([&](const std::string&) {
    for (const Case& c : cases) {
      for (const int threads : {1, 2, 3}) {
        for (const bool logprobs : {false, true}) {
          const auto run = [&](const std::vector<float>& x, std::vector<float>& probs) {
            std::vector<int32_t> tokens(kRows, -7);
            probs.assign(logprobs ? kRows : 0, -7);
            Sample(View(x.data(), kRows, n), tokens, probs,
                   {.temperature = {&c.temperature, 1},
                    .top_k = {&c.top_k, 1},
                    .top_p = {&c.top_p, 1},
                    .min_p = {&c.min_p, 1},
                    .on_invalid = InvalidRow::kToken,
                    .pool = &PoolOf(threads)});
            return tokens;
          };
          std::vector<float> probs, expected_probs;
          const std::vector<int32_t> tokens = run(bad, probs);
          std::vector<int32_t> expected = run(good, expected_probs);
          for (size_t row = 0; row < kRows; ++row) {
            if (!invalid[row]) continue;
            expected[row] = -1;
            if (logprobs) {
              EXPECT_TRUE(std::isnan(probs[row]));
              expected_probs[row] = probs[row];
            }
          }
          EXPECT_EQ(tokens, expected);
          EXPECT_EQ(BitsOf(probs), BitsOf(expected_probs));
        }
      }
    }
  });
}

TEST(SampleSeeds, ARowOfItsOwnSeedIsARowOfACallWithThatSeed) {
  constexpr int64_t kRows = 5, n = 1000;
  const std::vector<float> equal(kRows * n, 0);
  const MatrixView x = View(equal.data(), kRows, n);
  const std::vector<uint64_t> seeds = {0, 7, ~uint64_t{0}, 7, uint64_t{1} << 63};
  std::vector<int32_t> tokens(kRows), one(kRows), alone(kRows);
  Sample(x, tokens, {.seed = 3, .seeds = seeds});
  for (size_t row = 0; row < kRows; ++row) {
    Sample(x, alone, {.seed = seeds[row]});
    EXPECT_EQ(tokens[row], alone[row]);
    Sample(x, one, {.seeds = {&seeds[row], 1}});
    EXPECT_EQ(one, alone);
  }
  EXPECT_NE(tokens[1], tokens[2]);
}

}  // namespace
}  // namespace riffle::test
