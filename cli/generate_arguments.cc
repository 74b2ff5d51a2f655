#include "cli/generate_arguments.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iostream>

#include "cli/failure.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "engine/arch/architectures.h"
#include "engine/tokenizer/utf8.h"

namespace riffle::cli {
namespace {

// The most texts an option may take: CLI11 takes a larger limit for "any number", and then reads
// "[a, b]" as a list.
constexpr int kMaxTexts = 1 << 20;
constexpr int64_t kNewTokens = 64;
constexpr int64_t kNewTokensOfAnswers = 512;
constexpr std::string_view kByteOrderMark = "\uFEFF";

// Reads one prompt per line. A byte order mark and empty lines at the end are ignored.
std::vector<Prompt> ReadPromptFile(const std::string& path) {
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

void CheckNumbers(const GenerateArguments& a) {
  const engine::SamplingParams& s = a.sampling;
  if (!(s.temperature >= 0 && std::isfinite(s.temperature))) {
    FailInput("--temperature {} is not a finite number of 0 or more", s.temperature);
  }
  if (s.top_k < 0) FailInput("--top-k {} is not 0 (off) or more", s.top_k);
  if (!(s.top_p >= 0 && s.top_p <= 1)) FailInput("--top-p {} is not 0 to 1", s.top_p);
  if (!(s.min_p >= 0 && s.min_p <= 1)) FailInput("--min-p {} is not 0 to 1", s.min_p);
  const float repetition = s.penalties.repetition;
  if (!(repetition > 0 && std::isfinite(repetition))) {
    FailInput("--repetition-penalty {} is not a finite number above 0; 1 is off", repetition);
  }
  const auto check_penalty = [](const char* option, float value) {
    if (!(value >= -2 && value <= 2)) FailInput("{} {} is not -2 to 2; 0 is off", option, value);
  };
  check_penalty("--presence-penalty", s.penalties.presence);
  check_penalty("--frequency-penalty", s.penalties.frequency);
  if (a.max_new_tokens.value_or(1) < 1) {
    FailInput("--max-new-tokens {} is not 1 or more", *a.max_new_tokens);
  }
  if (a.context.value_or(1) < 1) FailInput("--context {} is not 1 or more", *a.context);
  if (a.threads < 0 || a.threads > 1024) FailInput("--threads {} is not 0 to 1024", a.threads);
}

void CheckTogether(const GenerateArguments& a) {
  if (a.list_models && (a.chat || a.has_prompts() || !a.model.empty())) {
    FailInput("--list-models goes without --model, --chat and prompts: it lists what there is");
  }
  if (!a.system.empty() && !a.chat) {
    FailInput("--system is the first message of a conversation: it needs --chat");
  }
  if (a.log_probabilities && !a.json) {
    FailInput("--log-probabilities are part of the JSON output: add --json");
  }
}

void AddModelOptions(CLI::App& command, GenerateArguments& a) {
  command
      .add_option("--model", a.model,
                  "the model, a GGUF file; architectures: " + engine::ArchitectureNames())
      ->type_name("FILE.gguf")
      ->check(CheckGiven);
  command.add_flag("--list-models", a.list_models, "the models that are there, and what they are");
  command
      .add_option("--context", a.context,
                  "tokens that a prompt and its continuation, or a conversation, may have together "
                  "(as many as the model holds)")
      ->type_name("N");
  command
      .add_option("--kv", a.kv,
                  "how keys and values are kept: " + engine::KvKindNames() +
                      " (f16), or fp8, which is e4m3. Fewer bits take less memory and round more")
      ->type_name("FORMAT");
  command
      .add_option("--threads", a.threads,
                  "threads, this one included; 0: RIFFLE_NUM_THREADS or all CPUs")
      ->type_name("N");
}

void AddTextOptions(CLI::App& command, GenerateArguments& a) {
  a.prompt = command.add_option("--prompt", "a text to continue; several may follow")
                 ->type_name("TEXT ...")
                 ->expected(1, kMaxTexts)
                 ->allow_extra_args(false);
  command.add_option("--prompts", a.prompts, "a file of prompts, one a line; - is stdin")
      ->type_name("FILE")
      ->check(CheckGiven)
      ->excludes(a.prompt);
  command.add_flag(
      "--chat", a.chat,
      "talk to a model that was trained for it, by its own chat template: prompts are "
      "questions, and without prompts the conversation comes from stdin, a line a turn");
  command.add_option("--system", a.system, "with --chat: the message before all others")
      ->type_name("TEXT")
      ->check(CheckGiven);
  command
      .add_option("--max-new-tokens", a.max_new_tokens,
                  "tokens to generate for each (64; with --chat 512)")
      ->type_name("N");
  a.stop = command.add_option("--stop", "end before this text; may be given more than once")
               ->type_name("TEXT")
               ->expected(1, kMaxTexts)
               ->allow_extra_args(false);
}

void AddSamplingOptions(CLI::App& command, GenerateArguments& a) {
  command
      .add_option("--temperature", a.sampling.temperature,
                  "0 takes the best token (the default), 1 samples from the model's distribution")
      ->type_name("T");
  command.add_option("--top-k", a.sampling.top_k, "sample from the K best tokens; 0: off")
      ->type_name("K");
  command
      .add_option("--top-p", a.sampling.top_p,
                  "of these, from the best that together have probability P; 1: off")
      ->type_name("P");
  command
      .add_option("--min-p", a.sampling.min_p,
                  "of these, from those at least M times as probable as the best; 0: off")
      ->type_name("M");
  engine::Penalties& penalties = a.sampling.penalties;
  command
      .add_option("--repetition-penalty", penalties.repetition,
                  "divide the positive logits of tokens of the prompt and of the answer so far by "
                  "R, multiply the negative ones by it; above 1 against repetition, 1: off")
      ->type_name("R");
  command
      .add_option("--presence-penalty", penalties.presence,
                  "take P off the logits of tokens of the answer so far, -2 to 2; 0: off")
      ->type_name("P");
  command
      .add_option("--frequency-penalty", penalties.frequency,
                  "take F off these logits for each time that the token occurs, -2 to 2; 0: off")
      ->type_name("F");
  command.add_option("--seed", a.seed, "another one draws other tokens (0)")
      ->type_name("S")
      ->check(CheckSeed);
}

}  // namespace

void AddGenerateOptions(CLI::App& command, GenerateArguments& a) {
  AddTextOptions(command, a);
  AddModelOptions(command, a);
  AddSamplingOptions(command, a);
  command.add_flag("--json", a.json, "one JSON object a line");
  command.add_flag("--log-probabilities", a.log_probabilities,
                   "with --json: the logarithm of each token's probability");
}

void CheckUtf8(const std::string& text, const std::string& source) {
  const size_t invalid = engine::FindInvalidUtf8(text);
  if (invalid != std::string::npos) {
    FailInput("{} is not valid UTF-8: byte 0x{:02x} at offset {}", source,
              static_cast<uint8_t>(text[invalid]), invalid);
  }
}

void CheckGenerateArguments(GenerateArguments& a) {
  CheckNumbers(a);
  CheckTogether(a);
  if (!engine::KvKindOf(a.kv)) {
    FailInput("--kv {} is none of {}", a.kv, engine::KvKindNames());
  }
  CheckUtf8(a.system, "--system");
  for (size_t i = 0; i < a.stop_texts().size(); ++i) {
    const std::string source = fmt::format("--stop {}", i + 1);
    if (a.stop_texts()[i].empty()) FailInput("{} is empty", source);
    CheckUtf8(a.stop_texts()[i], source);
  }
  if (!a.max_new_tokens) a.max_new_tokens = a.chat ? kNewTokensOfAnswers : kNewTokens;
  const engine::SamplingParams& s = a.sampling;
  if (s.temperature == 0 && (s.top_k != 0 || s.top_p != 1 || s.min_p != 0)) {
    PrintToStderr("riffle: note: --top-k, --top-p and --min-p have no effect at temperature 0\n");
  }
}

std::vector<Prompt> ReadPrompts(const GenerateArguments& arguments) {
  std::vector<Prompt> prompts;
  if (arguments.prompt->count() > 0) {
    // Not converted to a vector by CLI11, which takes "{}" for an empty one.
    for (const std::string& text : arguments.prompt->results()) {
      prompts.push_back({text, fmt::format("--prompt {}", prompts.size() + 1)});
    }
  } else if (!arguments.prompts.empty()) {
    prompts = ReadPromptFile(arguments.prompts);
  } else {
    FailInput(
        "there is nothing to continue: give --prompt TEXT or --prompts FILE, or --chat to talk");
  }
  for (const Prompt& prompt : prompts) {
    if (prompt.text.empty()) FailInput("{} is empty", prompt.source);
    CheckUtf8(prompt.text, prompt.source);
  }
  return prompts;
}

}  // namespace riffle::cli
