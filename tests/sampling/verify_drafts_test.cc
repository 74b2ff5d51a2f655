// VerifyDrafts: what comes out follows the target's distribution whatever the drafts are.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "riffle/error.h"
#include "riffle/sampling.h"
#include "testing/error_check.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/sampling_reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr int64_t kDrafts = 2;  // of each request

struct Parameters {
  float temperature, top_p, min_p;
  int32_t top_k;
};

// Many requests with the same logits, each with drafts drawn from q.
struct Case {
  int64_t n, requests;
  std::vector<float> target;  // [3, n]: the rows of a request
  std::vector<float> q;       // [2, n]
  std::vector<float> logits, probabilities;
  std::vector<int32_t> drafts;
  std::vector<int64_t> offsets;

  Case(int64_t columns, int64_t count, uint64_t seed) : n(columns), requests(count) {
    Rng rng(seed);
    for (int64_t i = 0; i < 3 * n; ++i) target.push_back(static_cast<float>(4 * rng.Unit()));
    for (int64_t row = 0; row < 2; ++row) {
      std::vector<double> weights;
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        weights.push_back(rng.OneIn(4) ? 0 : std::exp(3 * rng.Unit()));
        sum += weights.back();
      }
      for (const double w : weights) q.push_back(static_cast<float>(w / sum));
    }
    for (int64_t r = 0; r < requests; ++r) {
      offsets.push_back(r * kDrafts);
      logits.insert(logits.end(), target.begin(), target.end());
      probabilities.insert(probabilities.end(), q.begin(), q.end());
      for (int64_t row = 0; row < 2; ++row) {
        double place = rng.Unit();
        int64_t i = 0;
        for (; i + 1 < n; ++i) {
          place -= static_cast<double>(q[static_cast<size_t>(row * n + i)]);
          if (place < 0) break;
        }
        drafts.push_back(static_cast<int32_t>(i));
      }
    }
    offsets.push_back(requests * kDrafts);
  }

  // [requests, 3]
  std::vector<int32_t> Verify(const Parameters& p, bool probable, ThreadPool* pool) const {
    std::vector<int32_t> tokens(static_cast<size_t>(requests * 3), -7);
    DraftLists lists{drafts, offsets, {}};
    if (probable) lists.probabilities = View(probabilities.data(), requests * kDrafts, n);
    VerifyDrafts(View(logits.data(), requests * 3, n), lists, {tokens.data(), 3}, 3,
                 {.temperature = {&p.temperature, 1},
                  .top_k = {&p.top_k, 1},
                  .top_p = {&p.top_p, 1},
                  .min_p = {&p.min_p, 1},
                  .seed = 17,
                  .pool = pool});
    return tokens;
  }
};

constexpr Parameters kParameters[] = {{1, 1, 0, 0},    {0.7f, 0.9f, 0, 0}, {1, 1, 0, 9},
                                      {1, 1, 0.2f, 0}, {0, 1, 0, 0},       {2, 0.5f, 0, 30}};

TEST(VerifyDrafts, FollowsTheTargetsDistribution) {
  const auto check = [](int64_t n, int64_t requests, bool probable) {
    const Case drafts(n, requests, static_cast<uint64_t>(n));
    for (const Parameters& p : kParameters) {
      const std::vector<int32_t> tokens = drafts.Verify(p, probable, nullptr);
      // At each position, the tokens of the requests that got there.
      for (int64_t position = 0; position < 3; ++position) {
        const ExactDistribution exact = ReferenceDistribution(
            View(drafts.target.data(), 3, n), position, {p.temperature, p.top_k, p.top_p, p.min_p});
        std::vector<int32_t> seen;
        for (int64_t r = 0; r < requests; ++r) {
          const int32_t token = tokens[static_cast<size_t>(r * 3 + position)];
          if (token >= 0) seen.push_back(token);
        }
        if (position == 0) {
          ASSERT_EQ(static_cast<int64_t>(seen.size()), requests);
        }
        if (!seen.empty() && exact.least == exact.most) {
          EXPECT_LT(ChiSquaredExcess(exact, seen), 0) << "n=" << n << " position " << position;
        }
      }
    }
  };
  for (const bool probable : {false, true}) {
    check(12, 6000, probable);
    check(1500, 1500, probable);
  }
}

TEST(VerifyDrafts, OnEveryTargetWithAnyNumberOfThreads) {
  for (const int64_t n : {40, 2100, 17000}) {
    const Case drafts(n, 8, 3);
    OnEveryTarget([&](const std::string&) {
      for (const Parameters& p : kParameters) {
        for (const bool probable : {false, true}) {
          const std::vector<int32_t> alone = drafts.Verify(p, probable, &PoolOf(1));
          EXPECT_EQ(alone, drafts.Verify(p, probable, &PoolOf(3)));
          for (int64_t r = 0; r < 8; ++r) {  // drafts, one token, then -1
            int64_t i = 0;
            while (i < 2 && alone[static_cast<size_t>(r * 3 + i)] ==
                                drafts.drafts[static_cast<size_t>(r * 2 + i)]) {
              ++i;
            }
            EXPECT_GE(alone[static_cast<size_t>(r * 3 + i)], 0);
            while (++i < 3) EXPECT_EQ(alone[static_cast<size_t>(r * 3 + i)], -1);
          }
        }
      }
    });
  }
}

// A distribution that is the draft's accepts all drafts.
TEST(VerifyDrafts, EqualDistributionsAcceptEverything) {
  Case drafts(50, 500, 9);
  for (int64_t i = 0; i < 500 * 3 * 50; ++i) {
    const int64_t row = i / 50 % 3;
    const float q = row < 2 ? drafts.q[static_cast<size_t>(row * 50 + i % 50)] : 1;
    drafts.logits[static_cast<size_t>(i)] = std::log(q * 0.9999f);
  }
  const std::vector<int32_t> tokens = drafts.Verify({1, 1, 0, 0}, true, nullptr);
  int64_t accepted = 0;
  for (int64_t r = 0; r < 500; ++r) accepted += tokens[static_cast<size_t>(r * 3 + 2)] >= 0;
  EXPECT_GE(accepted, 498);
}

// Without probabilities the tokens are those that Sample draws at the same positions.
TEST(VerifyDrafts, GreedyDraftsGiveWhatSampleDraws) {
  constexpr int64_t n = 300;
  Rng rng(4);
  std::vector<float> logits;
  for (int64_t i = 0; i < 7 * n; ++i) logits.push_back(static_cast<float>(3 * rng.Unit()));
  const int64_t offsets[] = {0, 3, 3, 4};  // rows 0..3, 4, 5..6
  const int64_t row_stream[] = {5, 5, 5, 5, 9, 2, 2}, stream[] = {5, 9, 2};
  const int64_t row_position[] = {10, 11, 12, 13, 0, 7, 8}, position[] = {10, 0, 7};
  std::vector<int32_t> drawn(7);
  Sample(View(logits.data(), 7, n), drawn, {.stream = row_stream, .position = row_position});
  const std::vector<int32_t> drafts = {drawn[0], drawn[1], (drawn[2] + 1) % 300, drawn[5]};
  std::vector<int32_t> tokens(3 * 5, -7);
  VerifyDrafts(View(logits.data(), 7, n), {drafts, offsets, {}}, {tokens.data(), 5}, 4,
               {.stream = stream, .position = position});
  EXPECT_EQ(tokens, (std::vector<int32_t>{drawn[0], drawn[1], drawn[2], -1, -7,  //
                                          drawn[4], -1, -1, -1, -7,              //
                                          drawn[5], drawn[6], -1, -1, -7}));
}

TEST(VerifyDrafts, ARowWithoutAnAnswerEndsItsRequest) {
  Case drafts(30, 2, 5);
  for (int64_t i = 30; i < 60; ++i) {
    drafts.logits[static_cast<size_t>(i)] = std::numeric_limits<float>::quiet_NaN();
  }
  std::vector<int32_t> tokens(6);
  const DraftLists lists{drafts.drafts, drafts.offsets, {}};
  const MatrixView x = View(drafts.logits.data(), 6, 30);
  VerifyDrafts(x, lists, {tokens.data(), 3}, 3, {.on_invalid = InvalidRow::kToken});
  EXPECT_EQ(tokens[1], -1);
  EXPECT_EQ(tokens[2], -1);
  EXPECT_GE(tokens[0], 0);
  EXPECT_GE(tokens[3], 0);
  ExpectError(Code::kBadValue, {"logits[1, ", "NaN"}, [&] {
    VerifyDrafts(x, lists, {tokens.data(), 3}, 3);
  });
}

TEST(VerifyDrafts, Errors) {
  const Case drafts(10, 2, 5);
  std::vector<int32_t> tokens(6, -7);
  const auto expect = [&](Code code, const std::vector<std::string>& words, const DraftLists& lists,
                          int64_t rows, int64_t width, const SampleOptions& options) {
    ExpectError(code, words, [&] {
      VerifyDrafts(View(drafts.logits.data(), rows, 10), lists, {tokens.data(), 3}, width, options);
    });
    EXPECT_EQ(tokens, std::vector<int32_t>(6, -7));
  };
  const DraftLists good{drafts.drafts, drafts.offsets, {}};
  const std::vector<int32_t> bad = {1, 2, 3, 10};
  expect(Code::kBadShape, {"logits has 5 rows", "4 drafts"}, good, 5, 3, {});
  expect(Code::kBadValue, {"draft_tokens[3]", "10"}, {bad, drafts.offsets, {}}, 6, 3, {});
  expect(Code::kBadShape, {"2 columns", "2 drafts"}, good, 6, 2, {});
  expect(Code::kBadShape, {"offsets"}, {drafts.drafts, {}, {}}, 6, 3, {});
  expect(Code::kBadShape, {"draft_probs", "[4, 10]"},
         {drafts.drafts, drafts.offsets, View(drafts.q.data(), 2, 10)}, 6, 3, {});
  const std::vector<float> three(3, 1);
  expect(Code::kBadShape, {"temperature", "3"}, good, 6, 3, {.temperature = three});
  expect(Code::kBadOption, {"penalties"}, good, 6, 3, {.presence_penalty = {three.data(), 1}});
}

}  // namespace
}  // namespace riffle::test
