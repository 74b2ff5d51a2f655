// The engine with a tiny random model. Whatever happens to a request among others (chunks, forks,
// waiting, preemption), it gets the tokens that it would get alone.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <set>

#include "riffle/error.h"
#include "testing/targets.h"
#include "testing/tiny_model.h"

namespace riffle::engine {
namespace {

using riffle::testing::TinyModel;
using test::kSlow;

const Model& Tiny() {
  static const TinyModel* model = new TinyModel();
  return model->model();
}

Request RandomRequest(std::mt19937& random, int64_t stream) {
  Request request;
  // Prefixes that many requests share, which end at page boundaries and between them.
  static const int kShared[] = {0, 5, 16, 23, 40};
  const int shared = kShared[random() % 5];
  request.prompt.push_back(2);
  for (int i = 1; i < shared; ++i) {
    request.prompt.push_back(3 + i % 7);
  }
  for (int i = static_cast<int>(random() % 30); i > 0; --i) {
    request.prompt.push_back(static_cast<int32_t>(3 + random() % 125));
  }
  request.max_new_tokens = 1 + random() % 30;
  request.stream = stream;
  switch (random() % 4) {
    case 0:
      request.sampling = {1.0f, 5, 0.9f, 0};
      break;
    case 1:
      request.sampling = {2.0f, 0, 0.95f, 0.01f};
      break;
    default:
      break;  // greedy
  }
  if (random() % 3 == 0) {
    request.sampling.penalties = {1.0f + static_cast<float>(random() % 5) / 8,
                                  static_cast<float>(random() % 5) / 4 - 0.5f, 0.125f};
  }
  return request;
}

struct Outcome {
  std::vector<int32_t> tokens;
  std::optional<Finish> finish;
};

// Runs all requests, some of which arrive later, and checks that each one ends exactly once.
std::vector<Outcome> RunAll(const std::vector<Request>& requests, const EngineOptions& options,
                            EngineStats* stats = nullptr, size_t arrivals_per_step = 1000) {
  Engine engine(Tiny(), options);
  std::vector<Outcome> outcomes(requests.size());
  size_t next = 0;
  int64_t steps = 0;
  while (next < requests.size() || !engine.done()) {
    for (size_t i = 0; i < arrivals_per_step && next < requests.size(); ++i) {
      EXPECT_EQ(engine.Submit(requests[next]), static_cast<int64_t>(next));
      ++next;
    }
    for (const Generated& generated : engine.Step()) {
      Outcome& outcome = outcomes[static_cast<size_t>(generated.request)];
      EXPECT_FALSE(outcome.finish) << "a token after the last of " << generated.request;
      outcome.tokens.push_back(generated.token);
      outcome.finish = generated.finish;
    }
    const EngineStats now = engine.stats();
    EXPECT_LE(now.pages_used, now.pages_total);
    if (++steps > 100000) {
      ADD_FAILURE() << "no end";
      break;
    }
  }
  const EngineStats end = engine.stats();
  EXPECT_EQ(end.pages_used, 0);
  EXPECT_EQ(engine.progress().done, static_cast<int64_t>(requests.size()));
  if (stats != nullptr) {
    *stats = end;
  }
  return outcomes;
}

EngineOptions Options(int64_t pages, int64_t page_size, int64_t chunk, int64_t running) {
  EngineOptions options;
  options.pages = pages;
  options.page_size = page_size;
  options.prefill_chunk = chunk;
  options.max_running = running;
  options.seed = 7;
  return options;
}

std::vector<Outcome> Alone(const std::vector<Request>& requests) {
  std::vector<Outcome> outcomes;
  for (const Request& request : requests) {
    outcomes.push_back(RunAll({request}, Options(64, 16, 512, 1)).front());
  }
  return outcomes;
}

void ExpectSame(const std::vector<Outcome>& got, const std::vector<Outcome>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(got[i].tokens, wanted[i].tokens) << "request " << i;
    EXPECT_EQ(got[i].finish, wanted[i].finish) << "request " << i;
  }
}

std::vector<Request> RandomRequests(uint32_t seed, int count) {
  std::mt19937 random(seed);
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    requests.push_back(RandomRequest(random, 100 + i));
  }
  return requests;
}

TEST(Gemma3Engine, TokensAreThoseOfARequestAlone) {
  const std::vector<Request> requests = RandomRequests(1, kSlow ? 16 : 32);
  const std::vector<Outcome> alone = Alone(requests);
  std::set<int32_t> kinds;
  for (const Outcome& outcome : alone) {
    kinds.insert(outcome.tokens.begin(), outcome.tokens.end());
  }
  EXPECT_GT(kinds.size(), 40u) << "a model that says one thing proves nothing";
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(alone[i].finish);
    const int64_t size = static_cast<int64_t>(alone[i].tokens.size());
    if (*alone[i].finish == Finish::kLength) {
      EXPECT_EQ(size, requests[i].max_new_tokens);
    } else {
      EXPECT_EQ(alone[i].tokens.back(), 1);
    }
  }
  ExpectSame(RunAll(requests, Options(500, 16, 512, 64)), alone);
  ExpectSame(RunAll(requests, Options(500, 16, 7, 64)), alone);
  ExpectSame(RunAll(requests, Options(500, 5, 33, 8)), alone);
}

// In random small pools requests wait, are preempted and computed again, but none is lost.
TEST(Gemma3Engine, SmallPoolsLoseNothing) {
  const std::vector<Request> requests = RandomRequests(2, kSlow ? 12 : 24);
  const std::vector<Outcome> alone = Alone(requests);
  std::mt19937 random(3);
  int64_t preemptions = 0;
  int64_t shared = 0;
  for (int run = 0; run < (kSlow ? 4 : 12); ++run) {
    const int64_t page_size = 1 + random() % 20;
    // The largest request needs pages for 40 + 29 + 29 tokens.
    const int64_t least = (98 + page_size - 1) / page_size;
    const int64_t running = 1 + random() % 12;
    const int64_t chunk = 1 + random() % 40;
    const int64_t pages = least + static_cast<int64_t>(random() % (2 * least));
    EngineOptions options = Options(pages, page_size, chunk, running);
    options.share_prefixes = run % 4 != 3;
    EngineStats stats;
    ExpectSame(RunAll(requests, options, &stats, 1 + random() % 4), alone);
    preemptions += stats.preemptions;
    shared += stats.shared_tokens;
    EXPECT_TRUE(options.share_prefixes || stats.shared_tokens == 0);
  }
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(shared, 0);
}

TEST(Gemma3Engine, AnEqualPromptIsPrefilledOnce) {
  Request request;
  request.prompt.push_back(2);
  for (int i = 0; i < 100; ++i) {
    request.prompt.push_back(3 + i % 90);
  }
  request.max_new_tokens = 4;
  const std::vector<Request> requests(8, request);
  EngineStats stats;
  const std::vector<Outcome> outcomes = RunAll(requests, Options(64, 16, 512, 64), &stats);
  // The six full pages of the prompt are shared; each request computes the rest for itself.
  EXPECT_EQ(stats.shared_tokens, 7 * 96);
  EXPECT_EQ(stats.prefill_tokens, 101 + 7 * 5);
  EXPECT_EQ(stats.pages_peak, 6 + 8);
  ExpectSame(outcomes, std::vector<Outcome>(8, Alone({request}).front()));
}

TEST(Gemma3Engine, ThreadsChangeNoToken) {
  const std::vector<Request> requests = RandomRequests(4, 6);
  const std::vector<Outcome> wanted = RunAll(requests, Options(500, 16, 64, 64));
  ThreadPool one(1), three(3);
  for (ThreadPool* pool : {&one, &three}) {
    EngineOptions options = Options(500, 16, 64, 64);
    options.pool = pool;
    ExpectSame(RunAll(requests, options), wanted);
  }
}

TEST(Gemma3Engine, TheContextEndsARequest) {
  Request request;
  request.prompt.assign(250, 5);
  request.max_new_tokens = 1000;
  const Outcome outcome = RunAll({request}, Options(64, 16, 512, 1)).front();
  ASSERT_TRUE(outcome.finish);
  if (*outcome.finish == Finish::kLength) {
    // The last token is never an input, so position 256 needs no page.
    EXPECT_EQ(outcome.tokens.size(), 7u);
  }
}

void ExpectRefused(const Request& request, Code code, const std::string& text) {
  Engine engine(Tiny(), Options(4, 16, 8, 8));
  try {
    engine.Submit(request);
    ADD_FAILURE() << "accepted; wanted: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
  EXPECT_TRUE(engine.done());
}

TEST(Gemma3Engine, RefusesWhatCannotBe) {
  Request good;
  good.prompt = {2, 5};
  Request request = good;
  request.prompt.clear();
  ExpectRefused(request, Code::kBadShape, "the prompt is empty");
  request.prompt.assign(257, 5);
  ExpectRefused(request, Code::kBadRange, "257 tokens but the model's context holds 256");
  request.prompt.assign(65, 5);
  ExpectRefused(request, Code::kOutOfPages, "4 pages of 16 tokens");
  request.prompt = {2, 128};
  ExpectRefused(request, Code::kBadRange, "prompt[1] = 128");
  request.prompt = {-1};
  ExpectRefused(request, Code::kBadRange, "prompt[0] = -1");
  request = good;
  request.max_new_tokens = 0;
  ExpectRefused(request, Code::kBadOption, "max_new_tokens = 0");
  request = good;
  request.sampling.temperature = -1;
  ExpectRefused(request, Code::kBadOption, "temperature");
  request = good;
  request.sampling.top_k = -1;
  ExpectRefused(request, Code::kBadOption, "top_k = -1");
  request = good;
  request.sampling.top_p = 1.5f;
  ExpectRefused(request, Code::kBadOption, "top_p");
  request = good;
  request.sampling.min_p = std::numeric_limits<float>::quiet_NaN();
  ExpectRefused(request, Code::kBadOption, "min_p");
  EXPECT_THROW(Engine(Tiny(), Options(-1, 16, 8, 8)), Error);
  EXPECT_THROW(Engine(Tiny(), Options(4, 0, 8, 8)), Error);
  EXPECT_THROW(Engine(Tiny(), Options(4, 16, 0, 8)), Error);
}

}  // namespace
}  // namespace riffle::engine
