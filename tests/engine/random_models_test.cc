// Every architecture on a small random model, beside Transformers in float32:
// tests/data/random_models_greedy.json (make_random_models_fixture.py).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/model.h"
#include "testing/greedy_check.h"
#include "testing/paths.h"
#include "testing/random_models.h"

namespace riffle::engine {
namespace {

using riffle::testing::ExpectSameGreedyTokens;
using riffle::testing::GreedyCase;
using riffle::testing::RandomModelFile;
using riffle::testing::RandomModelNames;

TEST(RandomModels, GreedyTokensAreThoseOfTransformers) {
  std::ifstream file(std::string(test::kTestData) + "/random_models_greedy.json");
  const nlohmann::json fixture = nlohmann::json::parse(file);
  EXPECT_EQ(fixture.size(), RandomModelNames().size());
  for (const std::string& name : RandomModelNames()) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(fixture.contains(name));
    const std::vector<uint8_t> bytes = RandomModelFile(name);
    const Model model(GgufFile::Parse(bytes, name));
    // LongRoPE has other factors for a short context, and Transformers for a short text.
    const int64_t original = model.spec().ropes.front().original_context;
    std::vector<GreedyCase> cases, short_cases;
    size_t steps = 0;
    for (const auto& entry : fixture[name]) {
      const GreedyCase one = {name, entry["prompt"], entry["tokens"], entry["gaps"]};
      const auto tokens = static_cast<int64_t>(one.prompt.size() + one.tokens.size());
      (tokens <= original ? short_cases : cases).push_back(one);
      steps += one.tokens.size();
    }
    EXPECT_GT(steps, 80u);
    EXPECT_EQ(short_cases.empty(), original == 0);
    size_t compared = ExpectSameGreedyTokens(model, cases, 1000);
    if (original > 0) {
      EXPECT_GT(cases.size(), 1u);
      compared += ExpectSameGreedyTokens(model, short_cases, 1000, original);
    }
    EXPECT_GT(compared, steps * 2 / 3);
  }
}

}  // namespace
}  // namespace riffle::engine
