// The model end to end, beside another implementation: tests/data/gemma3_greedy.json holds what
// Transformers generates greedily from the same file in float32 (make_generate_fixture.py). And a
// request's tokens are the same alone and among others.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/default_model.h"
#include "engine/engine.h"
#include "engine/forward.h"
#include "engine/model.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/weights.h"
#include "testing/greedy_check.h"
#include "testing/paths.h"
#include "testing/targets.h"

namespace riffle::engine {
namespace {

using Tokens = std::vector<int32_t>;

using test::kSlow;
constexpr size_t kSteps = kSlow ? 2 : 48;  // of each prompt
constexpr int kBatch = kSlow ? 8 : 32;
constexpr size_t kLongest = kSlow ? 64 : 100000;  // prompt, in tokens

const Model& Gemma() {
  static const Model model = Model::Load(DefaultModelPath());
  return model;
}

using Case = riffle::testing::GreedyCase;

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = [] {
    std::ifstream file(std::string(test::kTestData) + "/gemma3_greedy.json");
    const Tokenizer tokenizer(Gemma().file());
    std::vector<Case> read;
    for (const auto& entry : nlohmann::json::parse(file)) {
      Case made = {entry["name"], tokenizer.Encode(entry["prompt"].get<std::string>()),
                   entry["tokens"], entry["gaps"]};
      EXPECT_EQ(made.prompt.size(), entry["prompt_tokens"].get<size_t>()) << made.name;
      if (made.prompt.size() <= kLongest) read.push_back(std::move(made));
    }
    return read;
  }();
  return cases;
}

std::vector<Tokens> RunAll(const std::vector<Request>& requests, uint64_t seed) {
  return riffle::testing::RunRequests(Gemma(), requests, seed);
}

TEST(Gemma3Greedy, FollowsTheReference) {
  ASSERT_GE(Cases().size(), 12u);
  const size_t compared = riffle::testing::ExpectSameGreedyTokens(Gemma(), Cases(), kSteps);
  EXPECT_GT(compared, Cases().size() * std::min<size_t>(kSteps, 40) * 4 / 5);
}

// Gaps of the two best logits after the reference's own tokens, where nothing but the arithmetic
// differs: 0.0014 off in the mean, at most 0.013.
TEST(Gemma3Greedy, GapsAreNearlyThoseOfTheReference) {
  const ModelSpec& spec = Gemma().spec();
  KvCacheOptions options;
  options.layers = spec.layer_count();
  options.kv_heads = spec.kv_heads;
  options.head_dim = spec.head_dim;
  options.pages = 200;
  options.dtype = KvKind().dtype;
  KvCache cache(options);
  Forward forward(Gemma(), cache, nullptr);
  std::vector<Slice> batch;
  std::vector<const Case*> cases;
  for (const Case& expected : Cases()) {
    batch.push_back({cache.Create(), 0, expected.prompt});
    cases.push_back(&expected);
  }
  const int64_t rows = static_cast<int64_t>(batch.size());
  std::vector<float> values(batch.size() * 2);
  std::vector<int32_t> indices(batch.size() * 2);
  LmHeadScratch scratch;
  double sum = 0, largest = 0;
  int64_t steps = 0;
  for (size_t step = 0; step < kSteps; ++step) {
    for (const Slice& slice : batch) {
      cache.Extend(slice.sequence, static_cast<int64_t>(slice.tokens.size()));
    }
    const std::span<const float> hidden = forward.Run(batch);
    Gemma().weights().head.TopK(hidden.data(), rows, 2, values.data(), indices.data(), scratch,
                                nullptr);
    for (size_t c = 0; c < batch.size(); ++c) {
      const Case& expected = *cases[c];
      const size_t at = std::min(step, expected.tokens.size() - 1);
      if (at == step) {
        const double gap = double{values[2 * c]} - values[2 * c + 1];
        const bool same = indices[2 * c] == expected.tokens[at];
        const double error = std::abs((same ? gap : -gap) - expected.gaps[at]);
        EXPECT_LT(error, 0.02) << expected.name << ", step " << step;
        largest = std::max(largest, error);
        sum += error;
        ++steps;
      }
      batch[c].start += static_cast<int64_t>(batch[c].tokens.size());
      batch[c].tokens = std::span(expected.tokens).subspan(at, 1);
    }
  }
  std::printf("%lld steps: gaps %.4f off in the mean, at most %.4f\n",
              static_cast<long long>(steps), sum / static_cast<double>(steps), largest);
  EXPECT_GE(cases.size(), 12u);
  EXPECT_GT(steps, static_cast<int64_t>(cases.size() * std::min<size_t>(kSteps, 40) * 4 / 5));
}

// Greedy and sampled requests of all lengths.
std::vector<Request> Mixed(int count, int64_t new_tokens) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request;
    request.prompt = Cases()[static_cast<size_t>(i) % Cases().size()].prompt;
    request.max_new_tokens = new_tokens - i % 5;
    request.stream = 100 + i;
    if (i % 3 != 0) request.sampling = {0.9f, i % 3 == 1 ? 64 : 0, 0.95f, 0.01f};
    requests.push_back(request);
  }
  return requests;
}

TEST(Gemma3Batch, SameTokensAloneAndInABatch) {
  const std::vector<Request> requests = Mixed(kBatch, kBatch > 8 ? 16 : 6);
  const std::vector<Tokens> together = RunAll(requests, 5);
  int sampled_otherwise = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i % 4 == 0) {  // greedy and sampled ones
      EXPECT_EQ(RunAll({requests[i]}, 5)[0], together[i]) << "request " << i;
    }
    const size_t like = i + Cases().size();  // the same prompt, another stream
    sampled_otherwise += like < requests.size() && together[i] != together[like];
  }
  if (kBatch > 16) {
    EXPECT_GT(sampled_otherwise, 5);
  }
}

}  // namespace
}  // namespace riffle::engine
