// Every architecture on a small random model, beside Transformers in float32:
// tests/data/random_models_greedy.json (make_random_models_fixture.py).
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/model.h"
#include "testing/greedy_check.h"
#include "testing/random_models.h"

namespace riffle::engine {
namespace {

using riffle::testing::ExpectSameGreedyTokens;
using riffle::testing::GreedyCase;
using riffle::testing::RandomModelFile;
using riffle::testing::RandomModelNames;

TEST(RandomModels, GreedyTokensAreThoseOfTransformers) {
  std::ifstream file(RIFFLE_TEST_DATA "/random_models_greedy.json");
  const nlohmann::json fixture = nlohmann::json::parse(file);
  EXPECT_EQ(fixture.size(), RandomModelNames().size());
  for (const std::string& name : RandomModelNames()) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(fixture.contains(name));
    const std::vector<uint8_t> bytes = RandomModelFile(name);
    const Model model(GgufFile::Parse(bytes, name));
    std::vector<GreedyCase> cases;
    size_t steps = 0;
    for (const auto& entry : fixture[name]) {
      cases.push_back({name, entry["prompt"], entry["tokens"], entry["gaps"]});
      steps += cases.back().tokens.size();
    }
    EXPECT_GT(steps, 80u);
    EXPECT_GT(ExpectSameGreedyTokens(model, cases, 1000), steps * 2 / 3);
  }
}

}  // namespace
}  // namespace riffle::engine
