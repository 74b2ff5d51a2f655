// Repetition, presence and frequency penalties: the arithmetic, beside Transformers and beside the
// formulas in double, and requests that ask for them.
#include "engine/penalties.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/choose.h"
#include "engine/engine.h"
#include "engine/weights.h"
#include "riffle/error.h"
#include "riffle/sampling.h"
#include "testing/crc32.h"
#include "testing/greedy_check.h"
#include "testing/paths.h"
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
  std::ifstream file(std::string(test::kTestData) + "/penalties.json");
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

// Rows of one call with other penalties, counts and filters: the tokens of all logits, penalized
// one by one. Some rows find theirs among the best logits, some need all.
TEST(Penalties, TheBestAfterPenaltiesAreFoundAmongTheBestBefore) {
  const int64_t vocab = Tiny().spec().vocab_size;
  const int64_t hidden_size = Tiny().spec().hidden_size;
  test::Rng rng(9);
  for (int round = 0; round < 40; ++round) {
    constexpr int64_t kRows = 12;
    std::vector<float> hidden(static_cast<size_t>(kRows * hidden_size));
    for (float& x : hidden) x = static_cast<float>(rng.Below(2001) - 1000) / 500;
    std::vector<TokenCounts> counts;
    std::vector<Choice> choices;
    for (int64_t row = 0; row < kRows; ++row) {
      Tokens prompt;
      for (int64_t i = rng.Below(150); i > 0; --i) {
        prompt.push_back(static_cast<int32_t>(rng.Below(vocab)));
      }
      counts.emplace_back(prompt);
      for (int64_t i = rng.Below(60); i > 0; --i) {
        counts.back().Reserve();
        counts.back().Add(static_cast<int32_t>(rng.Below(vocab)));
      }
      Choice choice;
      choice.stream = row;
      choice.position = round;
      if (row % 3 == 1) choice.sampling = {2.0f, 5, 0.95f, 0};
      if (row % 3 == 2) choice.sampling = {2.0f, 40, 1, 0.01f};
      if (row % 4 != 3) choice.sampling.penalties = {1.3f, 0.5f, 0.25f};
      if (row % 5 == 4) choice.sampling.penalties = {0.7f, -0.5f, 0};
      choices.push_back(choice);
    }
    for (size_t row = 0; row < choices.size(); ++row) choices[row].counts = counts[row].counts();
    std::vector<int32_t> got(kRows);
    std::vector<float> logs(kRows);
    Chooser chooser(Tiny(), 3, nullptr);
    chooser.Choose(hidden, choices, got, logs);
    LmHeadScratch scratch;
    const MatrixView logits = Tiny().weights().head.Logits(hidden.data(), kRows, scratch, nullptr);
    for (size_t row = 0; row < choices.size(); ++row) {
      const SamplingParams& sampling = choices[row].sampling;
      float* values = scratch.logits.data() + static_cast<int64_t>(row) * logits.row_stride;
      Penalize(sampling.penalties, counts[row].counts(), values);
      Tokens order(static_cast<size_t>(vocab));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return values[a] > values[b]; });
      size_t column = 0;
      if (sampling.temperature > 0) {
        std::vector<float> best;
        // Rows that need all logits draw from them where they stand.
        const bool all = !sampling.penalties.only_lower();
        if (all) std::iota(order.begin(), order.end(), 0);
        order.resize(static_cast<size_t>(all ? vocab : sampling.top_k));
        for (const int32_t token : order) best.push_back(values[token]);
        int32_t drawn = 0;
        SampleOptions options;
        options.temperature = std::span(&sampling.temperature, 1);
        options.top_k = std::span(&sampling.top_k, 1);
        options.top_p = std::span(&sampling.top_p, 1);
        options.min_p = std::span(&sampling.min_p, 1);
        options.seed = 3;
        options.stream = std::span(&choices[row].stream, 1);
        options.position = std::span(&choices[row].position, 1);
        Sample(View(best.data(), 1, static_cast<int64_t>(best.size())), std::span(&drawn, 1),
               options);
        column = static_cast<size_t>(drawn);
      }
      EXPECT_EQ(got[row], order[column]) << "round " << round << ", row " << row;
    }
  }
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
