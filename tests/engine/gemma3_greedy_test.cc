// The model end to end, beside another implementation: tests/data/gemma3_greedy.json holds what
// Transformers generates greedily from the same file in float32 (make_generate_fixture.py). And a
// request's tokens are the same alone and among others.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/default_model.h"
#include "engine/engine.h"
#include "engine/forward.h"
#include "engine/model.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/weights.h"

namespace riffle::engine {
namespace {

using Tokens = std::vector<int32_t>;

// Where the best logits are closer than this, rounding may choose: weights are quantised, and
// activations are not float32 everywhere.
constexpr double kClose = 0.05;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kSteps = 4;  // of each prompt; a step takes ten times as long
constexpr int kBatch = 8;
constexpr size_t kLongest = 64;  // prompt whose gaps are compared
#else
constexpr size_t kSteps = 48;
constexpr int kBatch = 32;
constexpr size_t kLongest = 100000;
#endif

const Model& Gemma() {
  static const Model model = Model::Load(DefaultModelPath());
  return model;
}

struct Case {
  std::string name;
  Tokens prompt;
  Tokens tokens;             // by the other implementation
  std::vector<double> gaps;  // between its two best logits
};

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = [] {
    std::ifstream file(RIFFLE_TEST_DATA "/gemma3_greedy.json");
    const Tokenizer tokenizer(Gemma().file());
    std::vector<Case> read;
    for (const auto& entry : nlohmann::json::parse(file)) {
      read.push_back({entry["name"], tokenizer.Encode(entry["prompt"].get<std::string>()),
                      entry["tokens"], entry["gaps"]});
      EXPECT_EQ(read.back().prompt.size(), entry["prompt_tokens"].get<size_t>());
    }
    return read;
  }();
  return cases;
}

// The tokens of all requests, run together.
std::vector<Tokens> RunAll(const std::vector<Request>& requests, uint64_t seed = 0) {
  EngineOptions options;
  options.seed = seed;
  Engine engine(Gemma(), options);
  for (const Request& request : requests) engine.Submit(request);
  std::vector<Tokens> tokens(requests.size());
  while (!engine.done()) {
    for (const Generated& generated : engine.Step()) {
      tokens[static_cast<size_t>(generated.request)].push_back(generated.token);
    }
  }
  return tokens;
}

TEST(Gemma3Greedy, FollowsTheReference) {
  ASSERT_GE(Cases().size(), 12u);
  // A case goes on from where it took another token of nearly the same logit, as if it had taken
  // the reference's.
  std::map<size_t, size_t> next;  // case -> step to be compared
  for (size_t c = 0; c < Cases().size(); ++c) next[c] = 0;
  size_t compared = 0, close = 0;
  while (!next.empty()) {
    std::vector<Request> requests;
    std::vector<size_t> of_request;
    for (const auto& [c, step] : next) {
      const Case& expected = Cases()[c];
      const size_t end = std::min(kSteps, expected.tokens.size());
      Request request;
      request.prompt = expected.prompt;
      request.prompt.insert(request.prompt.end(), expected.tokens.begin(),
                            expected.tokens.begin() + static_cast<int64_t>(step));
      request.max_new_tokens = static_cast<int64_t>(end - step);
      requests.push_back(request);
      of_request.push_back(c);
    }
    const std::vector<Tokens> results = RunAll(requests);
    for (size_t r = 0; r < results.size(); ++r) {
      const size_t c = of_request[r];
      const Case& expected = Cases()[c];
      size_t step = next[c];
      bool followed = true;
      for (const int32_t token : results[r]) {
        const bool clear = expected.gaps[step] > kClose;
        clear ? ++compared : ++close;
        followed = token == expected.tokens[step];
        EXPECT_TRUE(followed || !clear)
            << expected.name << ", step " << step << ": token " << token << ", not "
            << expected.tokens[step] << ", where the gap is " << expected.gaps[step];
        ++step;
        if (!followed) break;
      }
      next[c] = step;
      if (step >= std::min(kSteps, expected.tokens.size())) next.erase(c);
    }
  }
  std::printf("%zu steps compared, %zu with a gap up to %g\n", compared, close, kClose);
  EXPECT_GT(compared, Cases().size() * std::min<size_t>(kSteps, 40) * 4 / 5);
}

// Gaps of the two best logits after the reference's own tokens, where nothing but the arithmetic
// differs: 0.0013 off in the mean, at most 0.011.
TEST(Gemma3Greedy, GapsAreNearlyThoseOfTheReference) {
  const ModelSpec& spec = Gemma().spec();
  KvCacheOptions options;
  options.layers = spec.layer_count();
  options.kv_heads = spec.kv_heads;
  options.head_dim = spec.head_dim;
  options.pages = 200;
  options.dtype = kCacheDType;
  KvCache cache(options);
  Forward forward(Gemma(), cache, nullptr);
  std::vector<Slice> batch;
  std::vector<const Case*> cases;
  for (const Case& expected : Cases()) {
    if (expected.prompt.size() <= kLongest) {
      batch.push_back({cache.Create(), 0, expected.prompt});
      cases.push_back(&expected);
    }
  }
  const int64_t rows = static_cast<int64_t>(batch.size());
  std::vector<float> values(batch.size() * 2);
  std::vector<int32_t> indices(batch.size() * 2);
  double sum = 0, largest = 0;
  int64_t steps = 0;
  for (size_t step = 0; step < kSteps; ++step) {
    for (const Slice& slice : batch) {
      cache.Extend(slice.sequence, static_cast<int64_t>(slice.tokens.size()));
    }
    const std::span<const float> hidden = forward.Run(batch);
    const MatrixView x = {hidden.data(), DType::kF32, rows, spec.hidden_size, spec.hidden_size};
    LinearTopK(x, Gemma().weights().head, 2, {values.data(), 2, indices.data(), 2});
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
