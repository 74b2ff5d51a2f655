#include "testing/greedy_check.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <span>

namespace riffle::testing {
namespace {

// The request for tokens from step `step` on, after the reference's tokens before that step.
engine::Request Continue(const GreedyCase& expected, size_t step, size_t end) {
  engine::Request request;
  request.prompt = expected.prompt;
  request.prompt.insert(request.prompt.end(), expected.tokens.begin(),
                        expected.tokens.begin() + static_cast<int64_t>(step));
  request.max_new_tokens = static_cast<int64_t>(end - step);
  return request;
}

}  // namespace

std::vector<std::vector<int32_t>> RunRequests(const engine::Model& model,
                                              const std::vector<engine::Request>& requests,
                                              uint64_t seed, int64_t context) {
  engine::EngineOptions options;
  options.seed = seed;
  options.context = context;
  engine::Engine engine(model, options);
  for (const engine::Request& request : requests) engine.Submit(request);
  std::vector<std::vector<int32_t>> tokens(requests.size());
  while (!engine.done()) {
    for (const engine::Generated& generated : engine.Step()) {
      tokens[static_cast<size_t>(generated.request)].push_back(generated.token);
    }
  }
  return tokens;
}

size_t ExpectSameGreedyTokens(const engine::Model& model, const std::vector<GreedyCase>& cases,
                              size_t max_steps, int64_t context) {
  std::map<size_t, size_t> next;  // case -> step to be compared
  for (size_t c = 0; c < cases.size(); ++c) next[c] = 0;
  size_t compared = 0, close = 0;
  while (!next.empty()) {
    std::vector<engine::Request> requests;
    std::vector<size_t> of_request;
    for (const auto& [c, step] : next) {
      requests.push_back(Continue(cases[c], step, std::min(max_steps, cases[c].tokens.size())));
      of_request.push_back(c);
    }
    const auto results = RunRequests(model, requests, 0, context);
    for (size_t r = 0; r < results.size(); ++r) {
      const size_t c = of_request[r];
      const GreedyCase& expected = cases[c];
      size_t step = next[c];
      bool followed = true;
      for (const int32_t token : results[r]) {
        const bool clear = expected.gaps[step] > kCloseLogits;
        clear ? ++compared : ++close;
        followed = token == expected.tokens[step];
        EXPECT_TRUE(followed || !clear)
            << expected.name << ", step " << step << ": token " << token << ", not "
            << expected.tokens[step] << ", where the gap is " << expected.gaps[step];
        ++step;
        if (!followed) break;
      }
      next[c] = step;
      if (step >= std::min(max_steps, expected.tokens.size())) next.erase(c);
    }
  }
  std::printf("%zu steps compared, %zu with a gap up to %g\n", compared, close, kCloseLogits);
  return compared;
}

}  // namespace riffle::testing
