// Repetition, presence and frequency penalties: the arithmetic, beside Transformers and beside the
// formulas in double, and requests that ask for them.
#include "engine/penalties.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/engine.h"
#include "riffle/error.h"
#include "testing/crc32.h"
#include "testing/greedy_check.h"
#include "testing/random_models.h"
#include "testing/rng.h"
#include "testing/tiny_model.h"

namespace riffle::engine {
namespace {

using riffle::testing::Crc32;
using riffle::testing::kCloseLogits;
using riffle::testing::RandomModelFile;
using riffle::testing::RunRequests;
using riffle::testing::TinyModel;
using Tokens = std::vector<int32_t>;

nlohmann::json Fixture() {
  std::ifstream file(RIFFLE_TEST_DATA "/penalties.json");
  return nlohmann::json::parse(file);
}

const Model& Tiny() {
  static const TinyModel* const tiny = new TinyModel();
  return tiny->model();
}

// ---- the arithmetic
TEST(Penalties, RepetitionHasTheBitsOfTransformers) {
  constexpr size_t kVocab = 1000;
  const auto crcs = Fixture()["rows"].get<std::vector<uint32_t>>();
  ASSERT_EQ(crcs.size(), 200u);
  for (uint32_t row = 0; row < crcs.size(); ++row) {
    uint32_t number = row;
    const auto next = [&] { return (number = number * 1664525u + 1013904223u) >> 8; };
    std::vector<float> logits;
    while (logits.size() < kVocab) {
      logits.push_back(static_cast<float>(static_cast<int32_t>(next()) - (1 << 23)) / (1 << 18));
    }
    Tokens tokens;
    while (tokens.size() < 50) tokens.push_back(static_cast<int32_t>(next() % kVocab));
    const std::vector<float> before = logits;
    constexpr float kPenalties[] = {0.5f, 0.9f, 1.0f, 1.1f, 1.3f, 2.5f};
    Penalties penalties;
    penalties.repetition = kPenalties[row % 6];
    // Some of them as tokens of the answer: it makes no difference.
    const auto prompt = std::span<const int32_t>(tokens).first(row % 50);
    TokenCounts counts{prompt};
    for (size_t i = row % 50; i < tokens.size(); ++i) {
      counts.Reserve();
      counts.Add(tokens[i]);
    }
    Penalize(penalties, counts.counts(), logits.data());
    EXPECT_EQ(Crc32(logits.data(), kVocab * sizeof(float)), crcs[row]) << "row " << row;
    EXPECT_EQ(logits == before, penalties.repetition == 1) << "row " << row;
  }
}

TEST(Penalties, AllTogetherAsTheFormulasInDouble) {
  test::Rng rng(4);
  for (int round = 0; round < 500; ++round) {
    std::vector<float> logits(40);
    for (float& logit : logits) logit = static_cast<float>(rng.Below(4001) - 2000) / 128;
    std::vector<int64_t> in_prompt(40), in_answer(40);
    Tokens prompt;
    for (int64_t i = rng.Below(20); i > 0; --i) {
      prompt.push_back(static_cast<int32_t>(rng.Below(40)));
      ++in_prompt[static_cast<size_t>(prompt.back())];
    }
    TokenCounts counts(prompt);
    for (int64_t i = rng.Below(60); i > 0; --i) {
      const auto token = static_cast<int32_t>(rng.Below(40));
      counts.Reserve();
      counts.Add(token);
      ++in_answer[static_cast<size_t>(token)];
    }
    const Penalties penalties = {static_cast<float>(1 + rng.Below(300)) / 100,
                                 static_cast<float>(rng.Below(401) - 200) / 100,
                                 static_cast<float>(rng.Below(401) - 200) / 100};
    std::vector<float> got = logits;
    Penalize(penalties, counts.counts(), got.data());
    for (size_t token = 0; token < logits.size(); ++token) {
      double wanted = logits[token];
      if (in_prompt[token] + in_answer[token] > 0) {
        wanted = wanted < 0 ? wanted * penalties.repetition : wanted / penalties.repetition;
        wanted -= static_cast<double>(in_answer[token]) * penalties.frequency +
                  (in_answer[token] > 0 ? penalties.presence : 0);
        EXPECT_NEAR(got[token], wanted, 1e-6 * (std::abs(wanted) + 200));
      } else {
        EXPECT_EQ(got[token], logits[token]);
      }
    }
  }
}

TEST(Penalties, CountsAreByRisingToken) {
  const Tokens prompt = {9, 3, 9, 7, 3};
  TokenCounts counts(prompt);
  for (const int32_t token : {5, 9, 5, 1, 99}) {
    counts.Reserve();
    counts.Add(token);
  }
  const std::vector<std::pair<int32_t, int32_t>> wanted = {{1, 1}, {3, 0}, {5, 2},
                                                           {7, 0}, {9, 1}, {99, 1}};
  std::vector<std::pair<int32_t, int32_t>> got;
  for (const TokenCount& count : counts.counts()) got.emplace_back(count.token, count.in_answer);
  EXPECT_EQ(got, wanted);
}

// ---- requests
TEST(Penalties, GreedyTokensAreThoseOfTransformers) {
  const nlohmann::json fixture = Fixture();
  const std::string name = fixture["model"];
  const std::vector<uint8_t> bytes = RandomModelFile(name);
  const Model model(GgufFile::Parse(bytes, name));
  std::vector<Request> requests, without;
  for (const auto& entry : fixture["cases"]) {
    Request request;
    request.prompt = entry["prompt"].get<Tokens>();
    request.max_new_tokens = static_cast<int64_t>(entry["tokens"].size());
    without.push_back(request);
    const auto p = entry["penalties"].get<std::vector<float>>();
    request.sampling.penalties = {p[0], p[1], p[2]};
    requests.push_back(request);
  }
  const auto got = RunRequests(model, requests);
  const auto plain = RunRequests(model, without);
  size_t steps = 0, compared = 0, changed = 0;
  for (size_t r = 0; r < got.size(); ++r) {
    const auto wanted = fixture["cases"][r]["tokens"].get<Tokens>();
    const auto gaps = fixture["cases"][r]["gaps"].get<std::vector<double>>();
    steps += wanted.size();
    changed += got[r] != plain[r];
    // Where the best logits are close, rounding may choose, and all that follows is another text.
    for (size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_LT(i, got[r].size());
      if (got[r][i] != wanted[i]) {
        EXPECT_LE(gaps[i], kCloseLogits) << "case " << r << ", token " << i;
        break;
      }
      ++compared;
    }
  }
  EXPECT_GT(compared, steps * 2 / 3);
  EXPECT_GT(changed, got.size() * 2 / 3);
  std::printf("%zu of %zu tokens compared\n", compared, steps);
}

TEST(Penalties, OutsideTheirLimitsAreRefused) {
  Engine engine(Tiny());
  const auto refused = [&](const Penalties& penalties, const std::string& text) {
    Request request;
    request.prompt = {2, 5};
    request.sampling.penalties = penalties;
    try {
      engine.Submit(request);
      ADD_FAILURE() << "accepted; wanted: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kBadOption);
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_TRUE(engine.done());
  };
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  refused({0, 0, 0}, "repetition penalty = 0.000000 is not a finite number above 0; 1 is off");
  refused({-1, 0, 0}, "repetition penalty = -1");
  refused({kNaN, 0, 0}, "repetition penalty = nan");
  refused({kInfinity, 0, 0}, "repetition penalty = inf");
  refused({1, 2.5f, 0}, "presence penalty = 2.500000 is not in -2..2; 0 is off");
  refused({1, kNaN, 0}, "presence penalty = nan");
  refused({1, 0, -3}, "frequency penalty = -3");
}

}  // namespace
}  // namespace riffle::engine
