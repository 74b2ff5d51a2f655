// riffle generate: continues several texts at once with a model, or holds a conversation.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/chat.h"
#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/generate_arguments.h"
#include "cli/generate_model.h"
#include "cli/generate_output.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/stopwatch.h"
#include "riffle/riffle.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription =
    "Text from a language model in a GGUF file, all prompts together";

constexpr const char* kDetails =
    R"(A prompt is BOS and its text; control tokens that it spells out, such as <start_of_turn>, become
those tokens. With --chat a prompt is a question, written as the file's own chat template has it
(families: ChatML, Gemma, Llama 3), and what it spells out stays text.
Requests are decoded together, and a request's tokens do not depend on the others. Text goes to
stdout as it comes, statistics to stderr. --json prints one object a line, one a request in their
order, then {"stats": ...}; "finish_reason" is stop (a stop token of the model, or a --stop text),
length or error. A --stop text is not part of "text", its tokens are part of "tokens". A byte order
mark and empty lines at the end of a file of prompts are not part of it.
Without --model: the models that scripts/model.sh fetched, as `make demo` and `make test` do,
SmolLM2 135M Instruct with --chat, else Gemma 3 270M. --list-models shows what there is.

Continue texts:
  riffle generate --prompt "The capital of France is"
  riffle generate --prompts prompts.txt --max-new-tokens 100 --json
  riffle generate --prompt "Q: 2 + 2? A:" --stop "Q:" --stop $'\n'
Sample instead of taking the best token, the same for the same seed:
  riffle generate --prompt "Once upon a time" --temperature 0.8 --top-k 64 --top-p 0.95 --seed 7
Say less again:
  riffle generate --prompt "Once upon a time" --repetition-penalty 1.2
Talk (Ctrl-C stops an answer, Ctrl-D ends), or ask questions in one go:
  riffle generate --chat
  riffle generate --chat --system "Answer in one word." --prompt "What is the capital of France?"
  printf 'My name is Ada.\nWhat is my name?\n' | riffle generate --chat
Long texts in less memory, keys and values in 8.5 bits each instead of 16:
  riffle generate --prompts book.txt --context 8192 --kv q8_0)";

// The pages hold at least kMinPoolTokens tokens, and at most kMaxPoolTokens unless one request
// needs more.
constexpr int64_t kMinPoolTokens = 1024;
constexpr int64_t kMaxPoolTokens = 65536;

// Enough pages for all requests at once, within the limits; always enough for the longest one.
int64_t Pages(const std::vector<engine::Request>& requests, int64_t context, int64_t page_size) {
  int64_t longest = 0, all = 0;
  for (const engine::Request& request : requests) {
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    const int64_t room = std::max<int64_t>(context - prompt, 1);
    const int64_t tokens = prompt + std::min(request.max_new_tokens, room);
    const int64_t rounded = (tokens / page_size + 2) * page_size;
    longest = std::max(longest, rounded);
    all += rounded;
  }
  const int64_t tokens = std::max(longest, std::clamp(all, kMinPoolTokens, kMaxPoolTokens));
  return (tokens + page_size - 1) / page_size;
}

std::vector<int32_t> Encode(const GenerateArguments& arguments, const GenerateModel& model,
                            const std::string& text) {
  if (!model.chat) return model.tokenizer.Encode(text);
  std::vector<engine::ChatMessage> messages;
  if (!arguments.system.empty()) {
    messages.push_back({engine::ChatMessage::Role::kSystem, arguments.system});
  }
  messages.push_back({engine::ChatMessage::Role::kUser, text});
  return model.Encode(messages);
}

void Generate(const GenerateArguments& arguments, const std::vector<Prompt>& prompts,
              const GenerateModel& model, const engine::Stopwatch& watch) {
  std::vector<engine::Request> requests;
  std::vector<Generation> generations;
  for (const Prompt& prompt : prompts) {
    engine::Request request = model.MakeRequest(arguments);
    request.prompt = Encode(arguments, model, prompt.text);
    const auto tokens = static_cast<int64_t>(request.prompt.size());
    if (tokens == 0) {
      FailInput("{} has no token in the vocabulary of {}", prompt.source, model.file.path());
    }
    if (tokens > model.context) {
      FailInput("{} has {} tokens, but the {}context holds {}", prompt.source, tokens,
                arguments.context ? "" : "model's ", model.context);
    }
    requests.push_back(std::move(request));
    generations.emplace_back(prompt.text, tokens, model.tokenizer, arguments.stop_texts());
  }

  GenerateOutput output(generations, {arguments.json, arguments.log_probabilities, arguments.chat});
  output.line().Show("loading " + model.file.path(), true);
  const engine::Model weights(model.file);
  engine::EngineOptions options = OptionsOf(arguments);
  options.pages = Pages(requests, model.context, options.page_size);
  engine::Engine engine(weights, options);
  for (engine::Request& request : requests) engine.Submit(std::move(request));
  const double load_seconds = watch.seconds();
  while (!engine.done()) {
    for (const engine::Generated& token : engine.Step()) {
      Generation& generation = generations[static_cast<size_t>(token.request)];
      generation.Add(token);
      if (generation.finish) engine.Cancel(token.request);  // the engine ignores stop texts
    }
    output.Update(engine.progress(), engine.stats());
  }
  output.Finish(engine.stats(), load_seconds);
  const auto failed = std::count_if(generations.begin(), generations.end(), [](const auto& g) {
    return g.finish == engine::Finish::kError;
  });
  if (failed > 0) {
    FailRun("{}: gave logits that are not numbers: {} of {} requests ended early",
            model.file.path(), failed, generations.size());
  }
}

void Run(GenerateArguments& arguments) {
  CheckGenerateArguments(arguments);
  if (arguments.list_models) {
    ListModels(arguments.json);
    return;
  }
  const bool talks = arguments.chat && !arguments.has_prompts();
  const std::vector<Prompt> prompts = talks ? std::vector<Prompt>() : ReadPrompts(arguments);
  if (arguments.threads > 0) SetNumThreads(arguments.threads);
  try {
    const engine::Stopwatch watch;
    const GenerateModel model(arguments);
    if (talks) {
      Chat(arguments, model);
    } else {
      Generate(arguments, prompts, model, watch);
    }
  } catch (const engine::BadModel& error) {
    throw BadInput(error.what());
  }
}

}  // namespace

void AddGenerateCommand(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand("generate", kDescription);
  auto arguments = std::make_shared<GenerateArguments>();
  command->footer(kDetails);
  AddGenerateOptions(*command, *arguments);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace riffle::cli
