// The engine when something goes wrong: memory runs out in a step, or logits are NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "engine/arch/architectures.h"
#include "engine/choose.h"
#include "engine/engine.h"
#include "riffle/error.h"
#include "testing/allocations.h"
#include "testing/targets.h"
#include "testing/tiny_model.h"

namespace riffle::engine {
namespace {

using riffle::test::Fail;
using riffle::test::FailingAllocations;
using riffle::testing::TinyModel;
using Texts = std::vector<std::vector<int32_t>>;

// Requests whose prompts share a prefix; every other one is sampled.
std::vector<Request> Requests() {
  std::vector<Request> requests;
  for (int i = 0; i < 4; ++i) {
    Request request;
    request.prompt = {2};
    for (int j = 0; j < 14 + i * 9; ++j) {
      request.prompt.push_back(3 + (j * 7 + (j < 12 ? 0 : i)) % 100);
    }
    request.max_new_tokens = 14;
    if (i % 2 == 1) request.sampling = {1.0f, i == 1 ? 5 : 0, 0.9f, 0.0f};
    if (i >= 2) request.sampling.penalties = {1.2f, 0.5f, 0.25f};
    requests.push_back(request);
  }
  return requests;
}

std::array<int64_t, 6> Numbers(const Progress& p) {
  return {p.waiting, p.running, p.done, p.prompt_tokens, p.prompt_tokens_prefilled, p.new_tokens};
}

struct RunResult {
  Texts texts;
  int64_t failures = 0;
  int64_t preemptions = 0;
};

// Runs all requests, with allocation `which` of step `step` failing. A step that fails is tried
// again.
RunResult RunWithFailure(Engine& engine, int64_t step, int64_t which) {
  RunResult run;
  run.texts.resize(4);
  for (const Request& request : Requests()) engine.Submit(request);
  for (int64_t s = 0; !engine.done(); ++s) {
    if (s > 300) {
      ADD_FAILURE() << "no end after a failure in step " << step << ", allocation " << which;
      return run;
    }
    const Progress before = engine.progress();
    const int64_t preemptions = engine.stats().preemptions;
    std::optional<FailingAllocations> failing;
    if (s == step) failing.emplace(which, Fail::kOnceInThisThread);
    try {
      const std::vector<Generated>& made = engine.Step();
      failing.reset();
      for (const Generated& generated : made) {
        run.texts[static_cast<size_t>(generated.request)].push_back(generated.token);
      }
    } catch (const Error& error) {
      failing.reset();
      ++run.failures;
      EXPECT_EQ(error.code(), Code::kOutOfMemory) << error.what();
      if (engine.stats().preemptions == preemptions) {
        EXPECT_EQ(Numbers(engine.progress()), Numbers(before));
      }
    }
  }
  EXPECT_EQ(engine.stats().pages_used, 0);
  run.preemptions = engine.stats().preemptions;
  return run;
}

// Lets every allocation of every step fail (under sanitizers one in seven), in a large pool and in
// one where requests are preempted. Two layers: each of the hundreds of runs generates all texts.
TEST(Gemma3Faults, AStepThatRunsOutOfMemoryIsUndone) {
  const TinyModel tiny(
      24, 256, 0, [](riffle::testing::GgufWriter&) {}, 2);
  ThreadPool pool(1);
  for (const int64_t pages : {60, 13}) {
    EngineOptions options;
    options.pages = pages;
    options.page_size = 6;
    options.prefill_chunk = 20;
    options.seed = 5;
    options.pool = &pool;
    const auto run = [&](int64_t step, int64_t which) {
      Engine engine(tiny.model(), options);
      return RunWithFailure(engine, step, which);
    };
    const RunResult right = run(-1, 0);
    EXPECT_EQ(right.failures, 0);
    EXPECT_EQ(right.preemptions > 0, pages == 13);
    int64_t failed = 0;
    for (int64_t step = 0; step < 9; ++step) {
      constexpr int64_t kStride = test::kSlow ? 7 : 1;
      for (int64_t which = step % kStride;; which += kStride) {
        const RunResult got = run(step, which);
        EXPECT_EQ(got.texts, right.texts) << "step " << step << ", allocation " << which;
        if (got.failures == 0) break;  // the step has no more allocations
        ++failed;
      }
    }
    EXPECT_GT(failed, 50 / (test::kSlow ? 7 : 1));
  }
}

TEST(Gemma3Faults, SubmitThatRunsOutOfMemoryAddsNothing) {
  const TinyModel tiny;
  EngineOptions options;
  options.pages = 8;
  Engine engine(tiny.model(), options);
  int64_t added = 0;
  for (int64_t which = 0; added < 40; ++which) {
    Request request;
    request.prompt = {2, 5};
    request.max_new_tokens = 1;
    std::optional<FailingAllocations> failing(std::in_place, which % 8, Fail::kOnceInThisThread);
    try {
      const int64_t id = engine.Submit(std::move(request));
      failing.reset();
      EXPECT_EQ(id, added++);
    } catch (const Error& error) {
      failing.reset();
      EXPECT_EQ(error.code(), Code::kOutOfMemory);
    }
    EXPECT_EQ(engine.progress().waiting, added);
    EXPECT_EQ(engine.progress().prompt_tokens, 2 * added);
    ASSERT_LT(which, 1000);
  }
}

// ---- logits that are NaN
struct Outcome {
  std::vector<int32_t> tokens;
  std::optional<Finish> finish;
  bool operator==(const Outcome&) const = default;
};

std::vector<Outcome> RunAll(const Model& model, const std::vector<Request>& requests) {
  EngineOptions options;
  options.pages = 40;
  options.max_running = 8;
  Engine engine(model, options);
  for (const Request& request : requests) engine.Submit(request);
  std::vector<Outcome> outcomes(requests.size());
  for (int steps = 0; !engine.done() && steps < 1000; ++steps) {
    for (const Generated& generated : engine.Step()) {
      Outcome& outcome = outcomes[static_cast<size_t>(generated.request)];
      EXPECT_FALSE(outcome.finish);
      outcome.finish = generated.finish;
      EXPECT_EQ(generated.token == -1, generated.finish == Finish::kError);
      if (generated.token >= 0) outcome.tokens.push_back(generated.token);
    }
  }
  EXPECT_TRUE(engine.done());
  EXPECT_EQ(engine.stats().pages_used, 0);
  EXPECT_EQ(engine.progress().done, static_cast<int64_t>(requests.size()));
  return outcomes;
}

// Weights of the last norm near the largest float: some requests' states overflow, others' do not.
TEST(Gemma3Faults, ARequestOfNaNFailsAlone) {
  const TinyModel tiny(24, 256, 1.6e38f);
  std::vector<Request> requests;
  for (int i = 0; i < 24; ++i) {
    Request request;
    request.prompt = {2};
    for (int j = 0; j < 5 + i; ++j) request.prompt.push_back(3 + (j * (i + 1) + i) % 120);
    request.max_new_tokens = 6;
    request.stream = i;
    if (i % 3 == 1) request.sampling = {1.0f, 4, 1.0f, 0.0f};
    if (i % 3 == 2) request.sampling = {1.0f, 0, 1.0f, 0.0f};
    if (i % 4 == 3) request.sampling.penalties = {1.2f, 0.5f, 0.25f};
    requests.push_back(request);
  }
  std::vector<Outcome> alone;
  int failed = 0;
  for (const Request& request : requests) {
    alone.push_back(RunAll(tiny.model(), {request}).front());
    failed += alone.back().finish == Finish::kError;
  }
  EXPECT_GT(failed, 4);
  EXPECT_LT(failed, 20);
  EXPECT_EQ(RunAll(tiny.model(), requests), alone);
}

TEST(Gemma3Faults, ChooserLeavesOutTheRowsOfNaN) {
  const TinyModel tiny;
  Chooser chooser(tiny.model(), 3, nullptr);
  const SamplingParams kinds[] = {{}, {1.0f, 4, 1.0f, 0.0f}, {1.0f, 0, 0.9f, 0.0f}};
  std::vector<float> hidden(9 * 256);
  for (size_t i = 0; i < hidden.size(); ++i) {
    hidden[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  }
  std::vector<Choice> choices;
  for (int64_t row = 0; row < 9; ++row) choices.push_back({kinds[row % 3], row, 7});
  std::vector<int32_t> right(9), got(9);
  std::vector<float> logs(9);
  chooser.Choose(hidden, choices, right, logs);
  for (const size_t row : {size_t{1}, size_t{3}, size_t{8}}) {
    hidden[row * 256 + 5] = std::numeric_limits<float>::quiet_NaN();
    right[row] = kNoToken;
  }
  chooser.Choose(hidden, choices, got, logs);
  EXPECT_EQ(got, right);
}

// ---- several stop tokens
TEST(Gemma3Faults, EachStopTokenEndsARequest) {
  const TinyModel plain;
  Request request;
  request.prompt = {2, 9, 4, 30};
  request.max_new_tokens = 12;
  const Outcome whole = RunAll(plain.model(), {request}).front();
  ASSERT_EQ(whole.finish, Finish::kLength);
  const int32_t stop = whole.tokens[5];
  const auto first = std::find(whole.tokens.begin(), whole.tokens.end(), stop);
  using Writer = riffle::testing::GgufWriter;
  for (const char* name : {"eot_token_id", "eom_token_id", "eos_token_ids"}) {
    const std::string key = std::string("tokenizer.ggml.") + name;
    const TinyModel model(24, 256, 0, [&](Writer& writer) {
      if (key.ends_with('s')) {
        writer.AddArray<int32_t>(key, Writer::kI32, {1, stop});
      } else {
        writer.Add<int32_t>(key, Writer::kI32, stop);
      }
    });
    EXPECT_EQ(model.model().spec().stop_tokens, (std::vector<int32_t>{1, stop}));
    const Outcome outcome = RunAll(model.model(), {request}).front();
    EXPECT_EQ(outcome.finish, Finish::kStop) << key;
    EXPECT_EQ(outcome.tokens, std::vector<int32_t>(whole.tokens.begin(), first + 1)) << key;
  }
}

// The key of one stop token may hold a list.
TEST(Gemma3Faults, AListOfStopTokensUnderTheKeyOfOne) {
  const auto stop_tokens = [](const std::vector<int32_t>& tokens) {
    return TinyModel(
               24, 256, 0, [](riffle::testing::GgufWriter&) {}, 1, tokens)
        .model()
        .spec()
        .stop_tokens;
  };
  EXPECT_EQ(stop_tokens({7}), (std::vector<int32_t>{7}));
  EXPECT_EQ(stop_tokens({7, 3, 7}), (std::vector<int32_t>{7, 3}));
  EXPECT_THROW(stop_tokens({128}), BadModel);
  EXPECT_THROW(stop_tokens({3, -1}), BadModel);
  EXPECT_THROW(stop_tokens({}), BadModel);
}

// ---- which layers see a window
TEST(Gemma3Faults, TheFileMayStateItsLayersOfWindows) {
  using Writer = riffle::testing::GgufWriter;
  const auto spec = [](std::optional<uint32_t> period) {
    return TinyModel(24, 256, 0,
                     [&](Writer& writer) {
                       if (period) {
                         writer.Add("gemma3.attention.sliding_window_pattern", Writer::kU32,
                                    *period);
                         writer.Add("gemma3.rope.freq_base_swa", Writer::kF32, 5000.0f);
                       }
                     })
        .model()
        .spec();
  };
  const auto global = [](const ModelSpec& of) {
    std::vector<int> layers;
    for (size_t i = 0; i < of.layers.size(); ++i) {
      EXPECT_EQ(of.layers[i].window.has_value(), of.layers[i].rope == 0);
      if (!of.layers[i].window) layers.push_back(static_cast<int>(i));
    }
    return layers;
  };
  EXPECT_EQ(global(spec(std::nullopt)), std::vector<int>{5});
  EXPECT_EQ(spec(std::nullopt).ropes[0].base, 10000);
  EXPECT_EQ(global(spec(6)), std::vector<int>{5});
  EXPECT_EQ(spec(6).ropes[0].base, 5000);
  EXPECT_EQ(spec(6).ropes[1].base, 1e6);
  EXPECT_EQ(global(spec(3)), (std::vector<int>{2, 5}));
  EXPECT_EQ(global(spec(1)), (std::vector<int>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(global(spec(0)), std::vector<int>{});
}

// ---- the scaling of angles, as llama.cpp reads its keys
TEST(Gemma3Faults, ScalingOfAngles) {
  using Writer = riffle::testing::GgufWriter;
  const auto rope = [](const std::function<void(Writer&)>& more) {
    return TinyModel(24, 256, 0, more).model().spec().ropes[1];
  };
  const std::string key = "gemma3.rope.scaling.";
  const auto factor = [&](Writer& writer) {
    writer.Add(key + "factor", Writer::kF32, 4.0f);
    writer.Add(key + "attn_factor", Writer::kF32, 1.5f);
  };
  const RopeSpec without_type = rope(factor);  // linear
  EXPECT_EQ(without_type.scale, 0.25);
  EXPECT_EQ(without_type.magnitude, 1.5);
  const RopeSpec none = rope([&](Writer& writer) {
    writer.AddString(key + "type", "none");
    factor(writer);
  });
  EXPECT_EQ(none.scale, 1);
  EXPECT_EQ(none.magnitude, 1.5);
  const RopeSpec old =
      rope([](Writer& writer) { writer.Add("gemma3.rope.scale_linear", Writer::kF32, 8.0f); });
  EXPECT_EQ(old.scale, 0.125);
  EXPECT_EQ(old.magnitude, 1);
}

// ---- files that cannot be run are refused as they are loaded
std::string ErrorOf(const std::function<void(riffle::testing::GgufWriter&)>& more) {
  try {
    const TinyModel model(24, 256, 0, more);
  } catch (const BadModel& error) {
    return error.what();
  }
  return "no error";
}

TEST(Gemma3Faults, FilesThatContradictThemselvesAreRefused) {
  using Writer = riffle::testing::GgufWriter;
  const auto vocabulary = [](size_t tokens) {
    return ErrorOf([&](Writer& writer) {
      const std::vector<std::string> texts(tokens, "x");
      writer.AddArray("tokenizer.ggml.tokens", Writer::kString, texts);
    });
  };
  EXPECT_EQ(vocabulary(128), "no error");
  EXPECT_EQ(vocabulary(127),
            "tiny: the vocabulary tokenizer.ggml.tokens has 127 tokens, but the embedding "
            "token_embd.weight 128");
  EXPECT_NE(vocabulary(129), "no error");
  const auto split = [](uint16_t part, uint16_t parts) {
    return ErrorOf([&](Writer& writer) {
      writer.Add("split.no", Writer::kU16, part);
      writer.Add("split.count", Writer::kU16, parts);
    });
  };
  EXPECT_EQ(split(0, 1), "no error");
  EXPECT_EQ(split(1, 3).substr(0, 41), "tiny: is part 2 of 3 of a split model; th");
  EXPECT_EQ(
      ErrorOf([](Writer& writer) {
        writer.AddTensor("blk.0.ffn_up.bias", {0}, Writer::kU8, 0);  // type 0: F32
      }),
      "tiny: has a tensor \"blk.0.ffn_up.bias\", which no model of architecture gemma3 with 7 "
      "layers has: it may be of another kind");
  EXPECT_EQ(
      ErrorOf([](Writer& writer) { writer.AddString("gemma3.rope.scaling.type", "longrope"); }),
      "tiny: gemma3.rope.scaling.type = 'longrope' needs the tensor "
      "rope_factors_long.weight, which the file does not have");
  EXPECT_EQ(
      ErrorOf([](Writer& writer) { writer.AddString("gemma3.rope.scaling.type", "dynamic"); }),
      "tiny: gemma3.rope.scaling.type = 'dynamic' is not supported; none, linear, yarn and "
      "longrope are");
  EXPECT_EQ(ErrorOf([](Writer& writer) {
              writer.Add<uint8_t>("gemma3.attention.causal", Writer::kBool, 0);
            }),
            "tiny: gemma3.attention.causal = false: the model embeds texts and does not continue "
            "them");
  EXPECT_EQ(ErrorOf([](Writer& writer) {
              writer.Add<uint8_t>("gemma3.attention.causal", Writer::kBool, 1);
            }),
            "no error");
  EXPECT_EQ(ErrorOf([](Writer& writer) {
              writer.Add<uint32_t>("tokenizer.ggml.eot_token_id", Writer::kU32, 128);
            }),
            "tiny: tokenizer.ggml.eot_token_id has 128, which is not in 0..127");
}

}  // namespace
}  // namespace riffle::engine
