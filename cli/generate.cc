// riffle generate: continues texts with a model, all of them at once.
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/generate_output.h"
#include "cli/mapped_files.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "engine/arch/architectures.h"
#include "engine/default_model.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/stopwatch.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "riffle/riffle.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription =
    "Text from a language model in a GGUF file, all prompts together";

constexpr const char* kDetails =
    "A prompt is BOS and its text, no chat template; control tokens that it spells out, such as\n"
    "<start_of_turn>, become those tokens. Requests are decoded together, and a request's tokens "
    "do\n"
    "not depend on the others. Text goes to stdout as it comes, statistics to stderr. --json "
    "prints\n"
    "one object a line, one a request in their order, then {\"stats\": ...}; \"finish_reason\" "
    "is stop\n"
    "(at one of the model's stop tokens), length or error. A byte order mark and empty lines at "
    "the\n"
    "end of a file of prompts are not part of it.\n"
    "Without --model: the model that scripts/model.sh fetched, as `make demo` and `make test` do.\n"
    "\n"
    "Examples:\n"
    "  riffle generate --prompt \"The capital of France is\"\n"
    "  riffle generate --prompts prompts.txt --max-new-tokens 100 --json\n"
    "  riffle generate --prompt \"Once upon a time\" --temperature 0.8 --top-k 64 --top-p 0.95 "
    "--seed 7";

// No option takes more prompts than this: CLI11 would take a larger limit for "any number", and
// then read "[a, b]" as a list.
constexpr int kMaxPrompts = 1 << 20;
// The pages hold at least kMinPoolTokens tokens, and at most kMaxPoolTokens unless one request
// needs more.
constexpr int64_t kMinPoolTokens = 1024;
constexpr int64_t kMaxPoolTokens = 65536;

constexpr std::string_view kByteOrderMark = "\uFEFF";

struct Arguments {
  std::string model;
  CLI::Option* prompt = nullptr;
  std::string prompts;
  int64_t max_new_tokens = 64;
  engine::SamplingParams sampling;
  uint64_t seed = 0;
  int threads = 0;
  bool json = false;
};

struct Prompt {
  std::string text;
  std::string source;  // names the prompt in errors: "--prompt 2", "prompts.txt: line 3"
};

void CheckArguments(const Arguments& a) {
  const engine::SamplingParams& s = a.sampling;
  if (!(s.temperature >= 0 && std::isfinite(s.temperature))) {
    FailInput("--temperature {} is not a finite number of 0 or more", s.temperature);
  }
  if (s.top_k < 0) FailInput("--top-k {} is not 0 (off) or more", s.top_k);
  if (!(s.top_p >= 0 && s.top_p <= 1)) FailInput("--top-p {} is not 0 to 1", s.top_p);
  if (!(s.min_p >= 0 && s.min_p <= 1)) FailInput("--min-p {} is not 0 to 1", s.min_p);
  if (a.max_new_tokens < 1) FailInput("--max-new-tokens {} is not 1 or more", a.max_new_tokens);
  if (a.threads < 0 || a.threads > 1024) FailInput("--threads {} is not 0 to 1024", a.threads);
}

// Reads one prompt per line. A byte order mark and empty lines at the end are ignored.
std::vector<Prompt> ReadPrompts(const std::string& path) {
  struct ::stat status {};
  std::ifstream file;
  if (path != "-") {
    if (::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
      FailInput("--prompts {}: is a directory", path);
    }
    file.open(path, std::ios::binary);
    if (!file) FailInput("--prompts {}: cannot be opened: {}", path, std::strerror(errno));
  }
  std::istream& in = path == "-" ? std::cin : file;
  const std::string name = path == "-" ? "standard input" : path;
  std::vector<Prompt> prompts;
  for (std::string line; std::getline(in, line);) {
    if (prompts.empty() && line.starts_with(kByteOrderMark)) line.erase(0, kByteOrderMark.size());
    if (line.ends_with('\r')) line.pop_back();
    prompts.push_back({line, fmt::format("{}: line {}", name, prompts.size() + 1)});
  }
  if (in.bad()) FailInput("--prompts {}: cannot be read: {}", path, std::strerror(errno));
  while (!prompts.empty() && prompts.back().text.empty()) prompts.pop_back();
  if (prompts.empty()) FailInput("--prompts {}: has no prompts; one a line is expected", path);
  return prompts;
}

std::vector<Prompt> Prompts(const Arguments& arguments) {
  std::vector<Prompt> prompts;
  if (arguments.prompt->count() > 0) {
    // Not by CLI11's conversion to a vector, which takes "{}" for an empty vector.
    for (const std::string& text : arguments.prompt->results()) {
      prompts.push_back({text, fmt::format("--prompt {}", prompts.size() + 1)});
    }
  } else if (!arguments.prompts.empty()) {
    prompts = ReadPrompts(arguments.prompts);
  } else {
    FailInput("there is nothing to continue: give --prompt TEXT or --prompts FILE");
  }
  for (const Prompt& prompt : prompts) {
    if (prompt.text.empty()) FailInput("{} is empty", prompt.source);
    const size_t invalid = engine::FindInvalidUtf8(prompt.text);
    if (invalid != std::string::npos) {
      FailInput("{} is not valid UTF-8: byte 0x{:02x} at offset {}", prompt.source,
                static_cast<uint8_t>(prompt.text[invalid]), invalid);
    }
  }
  return prompts;
}

engine::GgufFile OpenModel(const std::string& named) {
  const std::string path = named.empty() ? engine::DefaultModelPath() : named;
  struct ::stat status {};
  if (named.empty() && ::stat(path.c_str(), &status) != 0) {
    FailInput(
        "there is no model at {}: scripts/model.sh fetches it, or --model FILE.gguf names one",
        path);
  }
  return engine::GgufFile::Open(path);
}

// Enough pages for all requests at once, within the limits; always enough for the longest one.
int64_t Pages(const std::vector<engine::Request>& requests, const engine::ModelSpec& spec,
              int64_t page_size) {
  int64_t longest = 0, all = 0;
  for (const engine::Request& request : requests) {
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    const int64_t room = std::max<int64_t>(spec.context_length - prompt, 1);
    const int64_t tokens = prompt + std::min(request.max_new_tokens, room);
    const int64_t rounded = (tokens / page_size + 2) * page_size;
    longest = std::max(longest, rounded);
    all += rounded;
  }
  const int64_t tokens = std::max(longest, std::clamp(all, kMinPoolTokens, kMaxPoolTokens));
  return (tokens + page_size - 1) / page_size;
}

void Generate(const Arguments& arguments, const std::vector<Prompt>& prompts) {
  const engine::Stopwatch watch;
  const engine::GgufFile file = OpenModel(arguments.model);
  const MappedFile mapped(file.path(), file.bytes().data(), file.bytes().size());
  const engine::ModelSpec spec = engine::ReadSpec(file);
  const engine::Tokenizer tokenizer(file);
  std::vector<engine::Request> requests;
  std::vector<Generation> generations;
  for (const Prompt& prompt : prompts) {
    engine::Request request;
    request.prompt = tokenizer.Encode(prompt.text);
    request.max_new_tokens = arguments.max_new_tokens;
    request.sampling = arguments.sampling;
    const auto tokens = static_cast<int64_t>(request.prompt.size());
    if (tokens > spec.context_length) {
      FailInput("{} has {} tokens, but the model's context holds {}", prompt.source, tokens,
                spec.context_length);
    }
    requests.push_back(std::move(request));
    generations.push_back({prompt.text, tokens, engine::StreamDecoder(tokenizer)});
  }

  GenerateOutput output(generations, arguments.json);
  output.line().Show("loading " + file.path(), true);
  const engine::Model model(file);
  engine::EngineOptions options;
  options.seed = arguments.seed;
  options.pages = Pages(requests, spec, options.page_size);
  engine::Engine engine(model, options);
  for (engine::Request& request : requests) engine.Submit(std::move(request));
  const double load_seconds = watch.seconds();
  while (!engine.done()) {
    for (const engine::Generated& token : engine.Step()) {
      generations[static_cast<size_t>(token.request)].Add(token);
    }
    output.Update(engine.progress(), engine.stats());
  }
  output.Finish(engine.stats(), load_seconds);
  const auto failed = std::count_if(generations.begin(), generations.end(), [](const auto& g) {
    return g.finish == engine::Finish::kError;
  });
  if (failed > 0) {
    FailRun("{}: gave logits that are not numbers: {} of {} requests ended early", file.path(),
            failed, generations.size());
  }
}

void Run(const Arguments& arguments) {
  CheckArguments(arguments);
  const std::vector<Prompt> prompts = Prompts(arguments);
  const engine::SamplingParams& s = arguments.sampling;
  if (s.temperature == 0 && (s.top_k != 0 || s.top_p != 1 || s.min_p != 0)) {
    PrintToStderr("riffle: note: --top-k, --top-p and --min-p have no effect at temperature 0\n");
  }
  if (arguments.threads > 0) SetNumThreads(arguments.threads);
  try {
    Generate(arguments, prompts);
  } catch (const engine::BadModel& error) {
    throw BadInput(error.what());
  }
}

}  // namespace

void AddGenerateCommand(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand("generate", kDescription);
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  command->footer(kDetails);
  command
      ->add_option("--model", a.model,
                   "the model, a GGUF file; architectures: " + engine::ArchitectureNames())
      ->type_name("FILE.gguf")
      ->check(CheckGiven);
  a.prompt = command->add_option("--prompt", "a text to continue; several may follow")
                 ->type_name("TEXT ...")
                 ->expected(1, kMaxPrompts)
                 ->allow_extra_args(false);
  command->add_option("--prompts", a.prompts, "a file of prompts, one a line; - is stdin")
      ->type_name("FILE")
      ->check(CheckGiven)
      ->excludes(a.prompt);
  command->add_option("--max-new-tokens", a.max_new_tokens, "tokens to generate for each (64)")
      ->type_name("N");
  command
      ->add_option("--temperature", a.sampling.temperature,
                   "0 takes the best token (the default), 1 samples from the model's distribution")
      ->type_name("T");
  command->add_option("--top-k", a.sampling.top_k, "sample from the K best tokens; 0: off")
      ->type_name("K");
  command
      ->add_option("--top-p", a.sampling.top_p,
                   "of these, from the best that together have probability P; 1: off")
      ->type_name("P");
  command
      ->add_option("--min-p", a.sampling.min_p,
                   "of these, from those at least M times as probable as the best; 0: off")
      ->type_name("M");
  command->add_option("--seed", a.seed, "another one draws other tokens (0)")
      ->type_name("S")
      ->check(CheckSeed);
  command
      ->add_option("--threads", a.threads,
                   "threads, this one included; 0: RIFFLE_NUM_THREADS or all CPUs")
      ->type_name("N");
  command->add_flag("--json", a.json, "one JSON object a line");
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace riffle::cli
