// Sample against the exact distribution: what may be drawn, how often, and that nothing but the
// row, its parameters and the number of the draw matters.
#include "riffle/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "riffle/runtime.h"
#include "testing/reference.h"
#include "testing/sampling_reference.h"
#include "testing/targets.h"
#include "testing/text.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// Calls f on every target in turn; at the end the best target is chosen again.
template <typename F>
void OnAllTargets(const F& f) {
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    SetTarget(target);
    f();
  }
  SetTarget("");
}

std::string Describe(const SampleParameters& p) {
  return Concat("temperature=", p.temperature, " top_k=", p.top_k, " top_p=", p.top_p,
                " min_p=", p.min_p);
}

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;

  bool operator==(const Drawn& other) const {
    const auto bits = [](float a, float b) {
      return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
    };
    return tokens == other.tokens && std::equal(logprobs.begin(), logprobs.end(),
                                                other.logprobs.begin(), other.logprobs.end(), bits);
  }
};

// `count` draws from the first row of x, at positions 0, 1, ...
Drawn DrawMany(const MatrixView& x, const SampleParameters& p, int64_t count, uint64_t seed = 7) {
  MatrixView repeated = x;
  repeated.rows = count;
  repeated.row_stride = 0;
  std::vector<int64_t> positions(static_cast<size_t>(count));
  for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int64_t>(i);
  const int64_t stream = 3;
  SampleOptions options{.temperature = {&p.temperature, 1},
                        .top_k = {&p.top_k, 1},
                        .top_p = {&p.top_p, 1},
                        .min_p = {&p.min_p, 1},
                        .seed = seed,
                        .stream = {&stream, 1},
                        .position = positions};
  Drawn drawn;
  drawn.tokens.resize(positions.size(), -1);
  Sample(repeated, drawn.tokens, options);
  return drawn;
}

// Expects that all draws are columns which the filters leave, each as often as its probability
// says.
void ExpectExact(const Input& input, const SampleParameters& p, int64_t count) {
  SCOPED_TRACE(Concat(Describe(input.spec()), " | ", Describe(p)));
  const ExactDistribution exact = ReferenceDistribution(input.view(), 0, p);
  std::vector<bool> may(static_cast<size_t>(input.view().cols));
  for (int64_t i = 0; i < exact.most; ++i) {
    may[static_cast<size_t>(exact.columns[static_cast<size_t>(i)])] = true;
  }
  // Under sanitizers only the columns matter; how often each comes is seen without them.
  const Drawn drawn = DrawMany(input.view(), p, kSlow ? std::min<int64_t>(count, 40) : count);
  for (const int32_t token : drawn.tokens) {
    ASSERT_TRUE(token >= 0 && token < input.view().cols && may[static_cast<size_t>(token)])
        << "column " << token << " of " << exact.kept << " kept";
  }
  // Where top_p is within rounding of a step of the distribution, either side of the step is right.
  if (exact.least == exact.most) {
    EXPECT_LT(ChiSquaredExcess(exact, drawn.tokens), 0);
  }
}

const SampleParameters kParameters[] = {
    {1, 0, 1, 0},           {0.6f, 0, 1, 0},    {2.5f, 0, 1, 0},    {1, 20, 1, 0},
    {1, 0, 0.9f, 0},        {1, 0, 0.3f, 0},    {1, 0, 1, 0.05f},   {0.8f, 50, 0.95f, 0.02f},
    {1.5f, 0, 0.97f, 0.1f}, {1, 7, 0.5f, 0},    {1, 1, 0.5f, 0},    {1, 0, 0, 0},
    {1, 0, 1, 1},           {0, 5, 0.1f, 0.5f}, {3, 0, 0.99f, 0},   {3, 1500, 0.99f, 0},
    {3, 1500, 1, 0.3f},     {1, 1 << 30, 1, 0}, {1000, 0, 0.7f, 0}, {1000, 0, 1, 0.999f}};

TEST(Sample, FollowsTheDistribution) {
  Rng rng(5);
  const auto check = [&](int64_t n, int64_t draws) {
    for (const SampleParameters& p : kParameters) {
      const DType dtype = kDTypes[rng.Below(3)];
      const Input input(
          {Distribution::kNormal, dtype, 1, n, n, 8, rng.Below(8), true, static_cast<uint64_t>(n)});
      ExpectExact(input, p, draws);
    }
  };
  OnAllTargets([&] {
    for (const int64_t n : {1, 2, 17, 1025, 2100}) {
      check(n, 300);
    }
  });
  for (const int64_t n : {300, 1024, 5000}) {
    check(n, 3000);
  }
}

TEST(Sample, FollowsEveryDistributionOfLogits) {
  for (const Distribution distribution : AllDistributions()) {
    if (distribution == Distribution::kAllMinusInf || distribution == Distribution::kNaNSprinkled ||
        distribution == Distribution::kFewNaN || distribution == Distribution::kAllNaN ||
        distribution == Distribution::kRandomBits) {
      continue;  // errors: see sampling_errors_test
    }
    for (const DType dtype : kDTypes) {
      for (const int64_t n : {200, 2500}) {
        const Input input({distribution, dtype, 1, n, n, 8, 1, true, 11});
        for (const SampleParameters& p : kParameters) {
          ExpectExact(input, p, 150);
        }
      }
    }
  }
}

// A nucleus that is far larger than any list of candidates is found by its mass. Of tied values at
// its end the lower columns are kept.
TEST(Sample, LargeNucleus) {
  OnAllTargets([] {
    for (const Distribution distribution :
         {Distribution::kNormal, Distribution::kUniform, Distribution::kTies,
          Distribution::kAllEqual, Distribution::kAscending, Distribution::kInfinities,
          Distribution::kDenormals, Distribution::kMostlyMinusInf}) {
      for (const DType dtype : kDTypes) {
        const Input input({distribution, dtype, 1, 4011, 4011, 8, 3, true, 13});
        ExpectExact(input, {1, 0, 0.9f, 0}, 200);
        ExpectExact(input, {4, 0, 0.5f, 0.2f}, 200);
        ExpectExact(input, {4, 0, 0.99999994f, 0}, 200);
      }
    }
  });
}

// Values that no named distribution has: a few that differ in the last bit only, and values from
// the whole range of f32.
TEST(Sample, ValuesOfAllScales) {
  constexpr int64_t n = 5003;
  std::vector<float> x(n);
  Rng rng(17);
  for (const int kind : {0, 1, 2}) {
    for (float& value : x) {
      const double sign = rng.OneIn(2) ? 1 : -1;
      value = static_cast<float>(
          kind == 0   ? 1 + static_cast<double>(rng.Below(5)) * 0x1p-23
          : kind == 1 ? sign * std::ldexp(1 + rng.Unit(), static_cast<int>(rng.Between(-149, 126)))
                      : sign * std::ldexp(1 + rng.Unit(), static_cast<int>(rng.Between(-149, 3))));
    }
    InputSpec spec{Distribution::kNormal, DType::kF32, 1, n, n, 8, 0, true, 13};
    spec.raw.resize(x.size() * sizeof(float));
    std::memcpy(spec.raw.data(), x.data(), spec.raw.size());
    const Input made(spec);
    for (const SampleParameters& p : kParameters) {
      ExpectExact(made, p, 500);
    }
    ExpectExact(made, {1e-45f, 0, 0.9f, 0}, 200);
    ExpectExact(made, {std::numeric_limits<float>::max(), 0, 0.9f, 0}, 1000);
  }
}

// Logits whose differences overflow f32, at temperatures so high that these differences matter.
TEST(Sample, DifferencesBeyondF32) {
  Rng rng(19);
  for (const int64_t n : {3, 700, 3001}) {
    std::vector<float> x;
    for (int64_t i = 0; i < n; ++i) {
      x.push_back(static_cast<float>((rng.OneIn(2) ? 3.4e38 : -3.4e38) * (0.2 + 0.8 * rng.Unit())));
    }
    InputSpec spec{Distribution::kNormal, DType::kF32, 1, n, n, 8, 0, true, 13};
    spec.raw.resize(x.size() * sizeof(float));
    std::memcpy(spec.raw.data(), x.data(), spec.raw.size());
    const Input input(spec);
    OnAllTargets([&] {
      for (const float temperature : {5e37f, 1e38f, 3.4e38f, std::numeric_limits<float>::max()}) {
        ExpectExact(input, {temperature, 0, 1, 0}, 4000);
        ExpectExact(input, {temperature, 0, 0.9f, 0}, 2000);
        ExpectExact(input, {temperature, 0, 1, 0.3f}, 2000);
        ExpectExact(input, {temperature, 2, 1, 0}, 2000);
      }
    });
  }
}

TEST(Sample, GreedyTakesTheLowerOfEqualColumns) {
  for (const DType dtype : kDTypes) {
    for (const Distribution distribution :
         {Distribution::kNormal, Distribution::kTies, Distribution::kAllEqual,
          Distribution::kInfinities, Distribution::kSignedZeros, Distribution::kAscending}) {
      const Input input({distribution, dtype, 4, 3001, 3003, 8, 1, true, 2});
      const float temperature[] = {0};
      std::vector<int32_t> tokens(4);
      Sample(input.view(), tokens, {.temperature = temperature});
      for (int64_t row = 0; row < 4; ++row) {
        EXPECT_EQ(tokens[static_cast<size_t>(row)], ReferenceTopK(input.view(), row, 0, 3001, 1)[0])
            << Describe(input.spec());
      }
    }
  }
}

TEST(Sample, LogProbsAreLogSoftmaxOfTheRawLogits) {
  OnAllTargets([] {
    for (const DType dtype : kDTypes) {
      for (const Distribution distribution :
           {Distribution::kNormal, Distribution::kLogProbs, Distribution::kInfinities,
            Distribution::kAllEqual, Distribution::kMostlyMinusInf}) {
        const Input input({distribution, dtype, 5, 9001, 9001, 8, 1, true, 2});
        const float temperature[] = {0, 0.5f, 1, 1, 3};
        const int32_t top_k[] = {0, 30, 0, 0, 2000};
        const float top_p[] = {1, 0.9f, 0.9f, 1, 1};
        const float min_p[] = {0, 0, 0, 0.1f, 0};
        std::vector<int32_t> tokens(5);
        std::vector<float> logprobs(5);
        Sample(input.view(), tokens, logprobs,
               {.temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p});
        for (size_t row = 0; row < 5; ++row) {
          const double truth =
              ReferenceLogProb(input.view(), static_cast<int64_t>(row), tokens[row]);
          EXPECT_NEAR(static_cast<double>(logprobs[row]), truth, 1e-6 * (1 + std::abs(truth)))
              << Describe(input.spec()) << " row " << row;
        }
      }
    }
  });
}

// The known answers of Philox4x32-10 (Random123's kat_vectors), seen through equal logits: the
// token is the integer part of n times the random number.
TEST(Sample, RandomNumbersArePhilox) {
  struct Known {
    uint64_t seed;
    int64_t stream, position;
    uint64_t random;
  };
  const Known known[] = {
      {0, 0, 0, 0xe169c58d6627e8d5u},
      {~uint64_t{0}, -1, -1, 0x41c83b0e408f276du},
      {0x299f31d0a4093822u, 0x0370734413198a2e, static_cast<int64_t>(0x85a308d3243f6a88u),
       0x94fdccebd16cfe09u},
  };
  for (const int64_t n : {1000, 200000}) {
    const std::vector<float> equal(static_cast<size_t>(n), 1.0f);
    for (const Known& k : known) {
      int32_t token = -1;
      Sample({equal.data(), DType::kF32, 1, n, n}, {&token, 1},
             {.seed = k.seed, .stream = {&k.stream, 1}, .position = {&k.position, 1}});
      const double unit = static_cast<double>(k.random >> 11) * 0x1p-53;
      EXPECT_EQ(token, static_cast<int32_t>(unit * static_cast<double>(n))) << n;
    }
  }
}

TEST(Sample, StreamsAreTheRowsUnlessGiven) {
  const std::vector<float> equal(1000, 0.0f);
  const MatrixView x{equal.data(), DType::kF32, 50, 1000, 0};
  std::vector<int32_t> by_default(50), given(50), others(50);
  std::vector<int64_t> streams(50);
  for (size_t i = 0; i < 50; ++i) streams[i] = static_cast<int64_t>(i);
  Sample(x, by_default, {.seed = 1});
  Sample(x, given, {.seed = 1, .stream = streams});
  Sample(x, others, {.seed = 2});
  EXPECT_EQ(by_default, given);
  EXPECT_NE(by_default, others);
  EXPECT_GT(std::set<int32_t>(given.begin(), given.end()).size(), 40u);
}

class SampleInvariance : public testing::TestWithParam<DType> {};

// A row draws the same token whatever the batch, the thread count, the stride and the alignment
// are.
TEST_P(SampleInvariance, OnlyTheRowMatters) {
  constexpr int64_t kRows = 19;
  constexpr int64_t n = 40007;
  const Input input({Distribution::kNormal, GetParam(), kRows, n, n + 3, 8, 1, true, 3});
  std::vector<float> temperature, top_p, min_p;
  std::vector<int32_t> top_k;
  std::vector<int64_t> stream, position;
  Rng rng(4);
  for (int64_t row = 0; row < kRows; ++row) {
    const SampleParameters& p = kParameters[static_cast<size_t>(row) % std::size(kParameters)];
    temperature.push_back(p.temperature);
    top_k.push_back(p.top_k);
    top_p.push_back(p.top_p);
    min_p.push_back(p.min_p);
    stream.push_back(rng.Below(1000));
    position.push_back(rng.Below(1000));
  }
  const auto run = [&](const MatrixView& x, size_t from, ThreadPool* pool, bool logprobs) {
    const auto rows = static_cast<size_t>(x.rows);
    const auto part = [&](auto& list) { return std::span(list).subspan(from, rows); };
    Drawn drawn{std::vector<int32_t>(rows, -1), std::vector<float>(logprobs ? rows : 0)};
    Sample(x, drawn.tokens, drawn.logprobs,
           {.temperature = part(temperature),
            .top_k = part(top_k),
            .top_p = part(top_p),
            .min_p = part(min_p),
            .seed = 9,
            .stream = part(stream),
            .position = part(position),
            .pool = pool});
    return drawn;
  };
  OnAllTargets([&] {
    const Drawn alone = run(input.view(), 0, &PoolOf(1), true);
    for (const int threads : {2, 3, 5}) {
      EXPECT_TRUE(run(input.view(), 0, &PoolOf(threads), true) == alone) << threads;
    }
    EXPECT_EQ(run(input.view(), 0, nullptr, false).tokens, alone.tokens);
    std::vector<uint8_t> copy(static_cast<size_t>(n) * 4 + 64);
    for (size_t row = 0; row < kRows; ++row) {
      std::memcpy(copy.data() + row, ElementAt(input.view(), static_cast<int64_t>(row), 0),
                  static_cast<size_t>(n) * SizeOf(GetParam()));
      const Drawn one =
          run({copy.data() + row, GetParam(), 1, n, -n}, row, &PoolOf(1 + row % 2), true);
      EXPECT_TRUE(one == (Drawn{{alone.tokens[row]}, {alone.logprobs[row]}})) << "row " << row;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(All, SampleInvariance, testing::ValuesIn(kDTypes),
                         [](const auto& which) { return std::string(riffle::Name(which.param)); });

// Random shapes and parameters, extreme temperatures among them: only columns that the filters
// leave are drawn.
TEST(Sample, RandomCases) {
  const uint64_t seed = FromEnvironment("RIFFLE_TEST_SEED", 1);
  const uint64_t cases = FromEnvironment("RIFFLE_TEST_CASES", 300);
  const std::vector<float> shares = {0, 1e-30f, 0.1f, 0.5f, 0.9f, 0.999f, 0.99999994f, 1};
  for (uint64_t i = 0; i < cases; ++i) {
    Rng rng(seed + i);
    const std::vector<Distribution> distributions = {
        Distribution::kNormal,    Distribution::kLogProbs,       Distribution::kTies,
        Distribution::kAllEqual,  Distribution::kMostlyMinusInf, Distribution::kInfinities,
        Distribution::kDenormals, Distribution::kHotBucket};
    const int64_t n = rng.OneIn(3) ? rng.Between(1, 70) : rng.Between(1, 9000);
    const Input input({rng.Pick(distributions), rng.Pick(kDTypes), 1, n, n, 8, rng.Below(4),
                       rng.OneIn(2), seed + i});
    const int32_t best = ReferenceTopK(input.view(), 0, 0, n, 1)[0];
    if (Decode(input.view().dtype, ElementAt(input.view(), 0, best)) ==
        -std::numeric_limits<double>::infinity()) {
      continue;  // an error
    }
    SampleParameters p;
    p.temperature = rng.Pick(std::vector<float>{0, 1e-45f, 1e-20f, 0.3f, 1, 2, 50, 3e38f});
    p.top_k = rng.OneIn(2) ? 0 : static_cast<int32_t>(rng.Between(1, 2 * n));
    p.top_p = rng.Pick(shares);
    p.min_p = rng.Pick(shares);
    ExpectExact(input, p, 40);
    ASSERT_FALSE(testing::Test::HasFailure())
        << "RIFFLE_TEST_SEED=" << seed + i << " RIFFLE_TEST_CASES=1 repeats it";
  }
}

}  // namespace
}  // namespace riffle::test
