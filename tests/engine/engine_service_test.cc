// The engine as the heart of a service: many requests, one after the other, that end, fail or are
// cancelled, and what it keeps of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <map>
#include <set>

#include "engine/engine.h"
#include "engine/forward.h"
#include "engine/prefix_keys.h"
#include "engine/weights.h"
#include "riffle/error.h"
#include "testing/targets.h"
#include "testing/tiny_model.h"

namespace riffle::engine {
namespace {

using riffle::testing::TinyModel;
using ::testing::HasSubstr;
using Tokens = std::vector<int32_t>;

constexpr int kRequests = test::kSlow ? 160 : 1000000;
constexpr int kWaiting = test::kSlow ? 300 : 100000;
// Under sanitizers mallinfo2() knows nothing, and there and under emulators time is another.
constexpr bool kMeasures = !test::kSlow;

const Model& Tiny() {
  static const TinyModel* const tiny = new TinyModel();
  return tiny->model();
}

// The scheduler takes most of its time.
const Model& OneLayer() {
  static const TinyModel* const tiny = new TinyModel(
      24, 256, 0, [](riffle::testing::GgufWriter&) {}, 1);
  return tiny->model();
}

Request Make(Tokens prompt, int64_t max_new_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = max_new_tokens;
  return request;
}

// BOS and `size` - 1 other tokens, which `number` names.
Tokens Prompt(int64_t size, int64_t number) {
  Tokens prompt = {2};
  for (int64_t i = 1; i < size; ++i) {
    prompt.push_back(static_cast<int32_t>(3 + (number * 31 + i * i * (number % 5 + 1)) % 125));
  }
  return prompt;
}

EngineOptions Options(int64_t pages, int64_t page_size = 16) {
  EngineOptions options;
  options.pages = pages;
  options.page_size = page_size;
  options.seed = 11;
  return options;
}

// The tokens of a request from here on, while others may run.
Tokens RunToEnd(Engine& engine, int64_t id) {
  Tokens tokens;
  while (!engine.done()) {
    for (const Generated& made : engine.Step()) {
      if (made.request == id) {
        tokens.push_back(made.token);
      }
    }
  }
  return tokens;
}

double ThreadSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Requests of one to three tokens arrive for ever. Half of them have a page that none had before,
// so pages are evicted all the time; some are cancelled.
TEST(EngineService, NothingGrowsOverManyShortRequests) {
  ThreadPool pool(1);
  EngineOptions options = Options(64, 2);
  options.pool = &pool;
  options.max_running = 16;
  Engine engine(OneLayer(), options);
  constexpr int kPhases = 10;
  std::vector<double> seconds;
  std::vector<size_t> bytes;
  int64_t cancelled = 0;
  for (int phase = 0; phase < kPhases; ++phase) {
    const double start = ThreadSeconds();
    for (int i = 0; i < kRequests / kPhases; ++i) {
      const int64_t number = int64_t{phase} * kRequests / kPhases + i;
      const int64_t id = engine.Submit(Make(Prompt(1 + number % 3, number), 1));
      ASSERT_EQ(id, number);
      if (number % 16 == 15) {
        cancelled += engine.Cancel(id - 3) + engine.Cancel(id);
        while (!engine.done()) {
          engine.Step();
        }
      }
    }
    seconds.push_back(ThreadSeconds() - start);
    bytes.push_back(mallinfo2().uordblks);
  }
  EXPECT_EQ(cancelled, kRequests / 16 * 2);
  const Progress progress = engine.progress();
  EXPECT_EQ(progress.done + progress.cancelled, kRequests);
  EXPECT_EQ(progress.cancelled, cancelled);
  EXPECT_EQ(progress.prompt_tokens, progress.prompt_tokens_prefilled);
  EXPECT_EQ(engine.stats().pages_used, 0);
  if (kMeasures) {
    EXPECT_LT(bytes.back(), bytes.front() + 4096) << "of 900000 requests something is kept";
    const double early = *std::min_element(seconds.begin(), seconds.begin() + kPhases / 2);
    const double late = *std::min_element(seconds.begin() + kPhases / 2, seconds.end());
    EXPECT_LT(late, 1.5 * early);
    std::printf("%d requests: %.2f s a tenth at first, %.2f s at last\n", kRequests, early, late);
  }
}

// All at once: a step does not look at every request that waits.
TEST(EngineService, ALongQueueDoesNotSlowSteps) {
  ThreadPool pool(1);
  EngineOptions options = Options(64, 4);
  options.pool = &pool;
  options.max_running = 4;
  const auto seconds = [&](int64_t waiting) {
    Engine engine(Tiny(), options);
    for (int64_t i = 0; i < waiting; ++i) {
      engine.Submit(Make(Prompt(1, i), 1));
    }
    const double start = ThreadSeconds();
    for (int i = 0; i < 50; ++i) {
      engine.Step();
    }
    EXPECT_EQ(engine.progress().done, 200);
    EXPECT_EQ(engine.progress().waiting, waiting - 200);
    return ThreadSeconds() - start;
  };
  const double few = seconds(300);
  const double many = seconds(kWaiting);
  if (kMeasures) {
    EXPECT_LT(many, 3 * few);
  }
}

TEST(EngineService, CancelFreesPagesAndDisturbsNobody) {
  const Request kept = Make(Prompt(40, 1), 20);
  Engine alone(Tiny(), Options(20));
  const Tokens wanted = RunToEnd(alone, alone.Submit(kept));
  for (int step = 0; step < 8; ++step) {
    EngineOptions options = Options(20);
    options.max_running = 3;
    options.prefill_chunk = 25;
    Engine engine(Tiny(), options);
    const int64_t first = engine.Submit(Make(Prompt(60, 2), 50));
    const int64_t second = engine.Submit(kept);
    const int64_t third = engine.Submit(Make(Prompt(40, 1), 50));
    const int64_t waits = engine.Submit(Make(Prompt(5, 3), 50));
    Tokens tokens;
    for (int i = 0; i < step; ++i) {
      for (const Generated& made : engine.Step()) {
        if (made.request == second) tokens.push_back(made.token);
      }
    }
    for (const int64_t id : {first, third, waits}) {
      EXPECT_TRUE(engine.Cancel(id));
      EXPECT_FALSE(engine.Cancel(id));
    }
    EXPECT_FALSE(engine.Cancel(99));
    EXPECT_FALSE(engine.Cancel(-1));
    const Progress progress = engine.progress();
    EXPECT_EQ(progress.cancelled, 3);
    EXPECT_EQ(progress.waiting + progress.running, 1);
    EXPECT_LE(engine.stats().pages_used, 4);
    const Tokens rest = RunToEnd(engine, second);
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    EXPECT_EQ(tokens, wanted) << "cancelled after step " << step;
    EXPECT_FALSE(engine.Cancel(second)) << "it has ended";
    EXPECT_EQ(engine.stats().pages_used, 0);
    EXPECT_EQ(engine.progress().prompt_tokens, engine.progress().prompt_tokens_prefilled);
  }
}

// ---- prefixes
TEST(EngineService, APrefixOutlivesItsRequest) {
  Engine engine(Tiny(), Options(40));
  const Tokens first = RunToEnd(engine, engine.Submit(Make(Prompt(50, 7), 20)));
  EXPECT_GT(engine.stats().pages_reusable, 0);
  // The conversation goes on: the prompt, the answer, and more.
  Tokens prompt = Prompt(50, 7);
  prompt.insert(prompt.end(), first.begin(), first.end());
  prompt.insert(prompt.end(), {9, 8, 7});
  const int64_t before = engine.stats().prefill_tokens;
  const Tokens second = RunToEnd(engine, engine.Submit(Make(prompt, 10)));
  const auto size = static_cast<int64_t>(prompt.size());
  // The last generated token was never an input, so its page may be incomplete.
  const int64_t shared = (50 + static_cast<int64_t>(first.size()) - 1) / 16 * 16;
  EXPECT_EQ(engine.stats().shared_tokens, shared);
  EXPECT_EQ(engine.stats().prefill_tokens - before, size - shared);
  Engine other(Tiny(), Options(40));
  EXPECT_EQ(second, RunToEnd(other, other.Submit(Make(prompt, 10))));

  EngineOptions options = Options(40);
  options.share_prefixes = false;
  Engine without(Tiny(), options);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(RunToEnd(without, without.Submit(Make(Prompt(50, 7), 20))), first);
  }
  EXPECT_EQ(without.stats().shared_tokens, 0);
  EXPECT_EQ(without.stats().pages_reusable, 0);
}

TEST(PrefixKeys, NameTokensAndAllBeforeThem) {
  const auto keys_of = [](const Tokens& tokens, int64_t page_size) {
    PrefixKeys made;
    made.Extend(tokens, page_size);
    return std::vector<BlockKey>(made.keys().begin(), made.keys().end());
  };
  for (const int64_t page_size : {1, 3, 8, 16, 21}) {
    const Tokens tokens = Prompt(100, 4);
    const std::vector<BlockKey> keys = keys_of(tokens, page_size);
    ASSERT_EQ(static_cast<int64_t>(keys.size()), 100 / page_size);
    PrefixKeys in_parts;
    for (const size_t size : {size_t{0}, size_t{7}, size_t{8}, size_t{50}, size_t{100}}) {
      in_parts.Extend(std::span(tokens).first(size), page_size);
    }
    EXPECT_TRUE(
        std::equal(keys.begin(), keys.end(), in_parts.keys().begin(), in_parts.keys().end()));
    // Another token changes the key of its page and of all behind it.
    for (const size_t at : {size_t{0}, size_t{1}, size_t{15}, size_t{40}}) {
      Tokens other = tokens;
      other[at] ^= 1;
      const std::vector<BlockKey> changed = keys_of(other, page_size);
      const size_t page = at / static_cast<size_t>(page_size);
      for (size_t i = 0; i < keys.size(); ++i) {
        EXPECT_EQ(changed[i] == keys[i], i < page) << "token " << at << ", page " << i;
      }
    }
  }
  // Equal pages at other places have other names.
  const std::vector<BlockKey> same = keys_of(Tokens(64, 5), 4);
  std::set<std::pair<uint64_t, uint64_t>> different;
  for (const BlockKey& key : same) {
    different.emplace(key.words[0], key.words[1]);
  }
  EXPECT_EQ(different.size(), 16u);
}

// ---- what a request may ask for
// log p(token) by softmax in double, of the logits that the engine's own LM head gives.
TEST(EngineService, LogProbabilitiesAreThoseOfAllLogits) {
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    Request request = Make(Prompt(4 + i, i), 8);
    if (i % 3 == 1) request.sampling = {1.5f, 7, 1.0f, 0};
    if (i % 3 == 2) request.sampling = {1.5f, 0, 0.9f, 0.01f};
    if (i >= 3) request.sampling.penalties = {1.3f, 0.5f, 0.5f};  // of which they know nothing
    request.stream = i;
    requests.push_back(request);
  }
  const auto run = [&](bool log_probabilities) {
    Engine engine(Tiny(), Options(40));
    for (Request request : requests) {
      request.log_probabilities = log_probabilities;
      engine.Submit(request);
    }
    std::vector<std::vector<Generated>> made(requests.size());
    while (!engine.done()) {
      for (const Generated& one : engine.Step()) {
        made[static_cast<size_t>(one.request)].push_back(one);
      }
    }
    return made;
  };
  const auto with = run(true);
  const auto without = run(false);
  for (size_t r = 0; r < requests.size(); ++r) {
    ASSERT_EQ(with[r].size(), without[r].size());
    Tokens tokens = requests[r].prompt;
    for (size_t i = 0; i < with[r].size(); ++i) {
      EXPECT_EQ(with[r][i].token, without[r][i].token) << "asking changes no token";
      EXPECT_EQ(without[r][i].log_probability, 0);
      // The probabilities of all tokens in the same place add up to 1.
      KvCacheOptions cache_options;
      cache_options.layers = Tiny().spec().layer_count();
      cache_options.kv_heads = Tiny().spec().kv_heads;
      cache_options.head_dim = Tiny().spec().head_dim;
      cache_options.pages = 8;
      cache_options.dtype = DType::kF16;
      KvCache cache(cache_options);
      Forward forward(Tiny(), cache, nullptr);
      const int64_t sequence = cache.Create();
      cache.Extend(sequence, static_cast<int64_t>(tokens.size()));
      const Slice slice = {sequence, 0, tokens};
      const auto hidden = forward.Run(std::span(&slice, 1));
      LmHeadScratch scratch;
      const MatrixView logits = Tiny().weights().head.Logits(hidden.data(), 1, scratch, nullptr);
      const auto* row = static_cast<const float*>(logits.data);
      double sum = 0;
      for (int64_t column = 0; column < logits.cols; ++column) sum += std::exp(double{row[column]});
      const double wanted = row[with[r][i].token] - std::log(sum);
      EXPECT_NEAR(with[r][i].log_probability, wanted, 1e-5) << "request " << r << ", token " << i;
      tokens.push_back(with[r][i].token);
    }
  }
}

TEST(EngineService, AShorterContextEndsRequests) {
  EngineOptions options = Options(40);
  options.context = 30;
  Engine engine(Tiny(), options);
  EXPECT_EQ(engine.context(), 30);
  const Tokens tokens = RunToEnd(engine, engine.Submit(Make(Prompt(20, 1), 100)));
  EXPECT_EQ(tokens.size(), 11u);  // the last token takes no room
  try {
    engine.Submit(Make(Prompt(31, 1), 1));
    ADD_FAILURE() << "a prompt beyond the context was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::kBadRange);
    EXPECT_THAT(error.what(), HasSubstr("31 tokens but the context holds 30"));
  }
  EXPECT_EQ(Engine(Tiny(), Options(40)).context(), 256);
  for (const int64_t context : {-1, 257}) {
    options.context = context;
    try {
      Engine refused(Tiny(), options);
      ADD_FAILURE() << context;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::kBadOption);
      EXPECT_THAT(error.what(), HasSubstr("context = " + std::to_string(context)));
    }
  }
}

// Every way to keep keys and values: tokens are those of the request alone, and the more bits, the
// closer to f32's.
TEST(EngineService, EveryKindOfKeysAndValues) {
  std::vector<Request> requests;
  for (int i = 0; i < 12; ++i) {
    requests.push_back(Make(Prompt(10 + 7 * i, i + 1), 12));
    requests.back().log_probabilities = true;
  }
  const auto run = [&](const KvKind& kind, const std::vector<Request>& all) {
    EngineOptions options = Options(200);
    options.kv = kind;
    options.prefill_chunk = 60;
    Engine engine(Tiny(), options);
    for (const Request& request : all) engine.Submit(request);
    std::vector<std::vector<Generated>> made(all.size());
    while (!engine.done()) {
      for (const Generated& one : engine.Step()) {
        made[static_cast<size_t>(one.request)].push_back(one);
      }
    }
    return made;
  };
  const auto exact = run({DType::kF32}, requests);
  const auto error_of = [&](const KvKind& kind) {
    const auto together = run(kind, requests);
    double sum = 0;  // of the errors of first tokens, whose prompts are the same for all
    int count = 0;
    for (size_t r = 0; r < requests.size(); ++r) {
      const bool runs_alone = !test::kSlow || r % 4 == 3;
      const auto alone = runs_alone ? run(kind, {requests[r]}).front() : together[r];
      EXPECT_EQ(alone.size(), together[r].size());
      for (size_t i = 0; i < alone.size(); ++i) {
        EXPECT_EQ(alone[i].token, together[r][i].token);
        EXPECT_EQ(alone[i].log_probability, together[r][i].log_probability);
      }
      if (together[r][0].token == exact[r][0].token) {
        sum += std::abs(double{together[r][0].log_probability} - exact[r][0].log_probability);
        ++count;
      }
    }
    EXPECT_GE(count, 8);
    return sum / count;  // the largest alone would depend on whose token another format changes
  };
  std::map<std::string_view, double> errors;
  for (const NamedKvKind& named : kKvKinds) {
    SCOPED_TRACE(named.name);
    EXPECT_EQ(KvKindOf(named.name), named.kind);
    errors[named.name] = error_of(named.kind);
    std::printf("%-7s %.6f\n", std::string(named.name).c_str(), errors[named.name]);
  }
  EXPECT_EQ(errors["f32"], 0);
  EXPECT_GT(errors["f16"], 0);
  EXPECT_LT(errors["f16"], errors["bf16"]);
  EXPECT_LT(errors["q8_0"], errors["q5_0"]);
  EXPECT_LT(errors["q5_0"], errors["q4_0"]);
  EXPECT_LT(errors["bf16"], errors["q4_1"]);
  EXPECT_LT(errors["e4m3"], errors["e5m2"]);
  EXPECT_EQ(KvKindOf("f8"), std::nullopt);
  EXPECT_EQ(KvKindOf("fp8"), KvKind{DType::kE4M3});
  EXPECT_THAT(KvKindNames(), HasSubstr("f32, f16, bf16, e4m3"));
}

}  // namespace
}  // namespace riffle::engine
