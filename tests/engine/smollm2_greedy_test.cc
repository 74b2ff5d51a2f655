// SmolLM2 end to end, beside Transformers in float32: tests/data/smollm2_greedy.json
// (make_smollm2_fixture.py). And a request's tokens are the same alone and among others.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/default_model.h"
#include "engine/model.h"
#include "engine/tokenizer/tokenizer.h"
#include "testing/greedy_check.h"
#include "testing/paths.h"
#include "testing/targets.h"

namespace riffle::engine {
namespace {

using riffle::testing::GreedyCase;
using riffle::testing::RunRequests;

using test::kSlow;
constexpr size_t kSteps = kSlow ? 2 : 1000;  // of each prompt
constexpr size_t kLongest = kSlow ? 100 : 100000;
constexpr int kBatch = kSlow ? 6 : 32;

const Model& SmolLm2() {
  static const Model model = Model::Load(ChatModelPath());
  return model;
}

const std::vector<GreedyCase>& Cases() {
  static const std::vector<GreedyCase> cases = [] {
    std::ifstream file(std::string(test::kTestData) + "/smollm2_greedy.json");
    const Tokenizer tokenizer(SmolLm2().file());
    std::vector<GreedyCase> read;
    for (const auto& entry : nlohmann::json::parse(file)) {
      GreedyCase made = {entry["name"], tokenizer.Encode(entry["text"].get<std::string>()),
                         entry["tokens"], entry["gaps"]};
      EXPECT_EQ(made.prompt.size(), entry["prompt_tokens"].get<size_t>()) << made.name;
      if (made.prompt.size() <= kLongest) read.push_back(std::move(made));
    }
    return read;
  }();
  return cases;
}

TEST(SmolLm2, SpecIsTheFiles) {
  const ModelSpec& spec = SmolLm2().spec();
  EXPECT_EQ(spec.layer_count(), 30);
  EXPECT_EQ(spec.q_heads, 9);
  EXPECT_EQ(spec.kv_heads, 3);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(spec.head, spec.embedding);
  EXPECT_EQ(spec.stop_tokens, std::vector<int32_t>{2});
}

TEST(SmolLm2, GreedyTokensAreThoseOfTransformers) {
  ASSERT_GE(Cases().size(), 13u);
  size_t steps = 0;
  for (const GreedyCase& one : Cases()) steps += std::min(kSteps, one.tokens.size());
  const size_t compared = riffle::testing::ExpectSameGreedyTokens(SmolLm2(), Cases(), kSteps);
  EXPECT_GT(compared, steps * 4 / 5);
}

TEST(SmolLm2, SameTokensAloneAndInABatch) {
  std::vector<Request> requests;
  for (int i = 0; i < kBatch; ++i) {
    Request request;
    request.prompt = Cases()[static_cast<size_t>(i) % (Cases().size() - 1)].prompt;
    request.max_new_tokens = 10 - i % 5;
    request.stream = i;
    if (i % 3 != 0) request.sampling = {0.9f, i % 3 == 1 ? 64 : 0, 0.95f, 0.01f};
    requests.push_back(request);
  }
  const auto together = RunRequests(SmolLm2(), requests, 5);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(RunRequests(SmolLm2(), {requests[i]}, 5)[0], together[i]) << "request " << i;
  }
}

}  // namespace
}  // namespace riffle::engine
