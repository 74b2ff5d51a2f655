// The options of `riffle generate`, checked as far as they can be without a model.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace riffle::cli {

struct GenerateArguments {
  std::string model;
  CLI::Option* prompt = nullptr;
  std::string prompts;
  bool chat = false;
  bool list_models = false;
  std::string system;
  CLI::Option* stop = nullptr;
  std::optional<int64_t> max_new_tokens;
  std::optional<int64_t> context;
  std::string kv = "f16";
  engine::SamplingParams sampling;
  uint64_t seed = 0;
  int threads = 0;
  bool log_probabilities = false;
  bool json = false;

  // Not converted to a vector by CLI11, which takes "{}" for an empty one.
  const std::vector<std::string>& stop_texts() const { return stop->results(); }
  bool has_prompts() const { return prompt->count() > 0 || !prompts.empty(); }
  engine::KvKind kv_kind() const { return *engine::KvKindOf(kv); }
};

struct Prompt {
  std::string text;
  std::string source;  // names the prompt in errors: "--prompt 2", "prompts.txt: line 3"
};

void AddGenerateOptions(CLI::App& command, GenerateArguments& arguments);

// Throws BadInput, which names the option, its value and the values that it may have. Sets
// max_new_tokens if the option was not given.
void CheckGenerateArguments(GenerateArguments& arguments);

// The texts of --prompt or --prompts, none empty, all UTF-8. Throws BadInput.
std::vector<Prompt> ReadPrompts(const GenerateArguments& arguments);

// Throws BadInput, which begins with `source`, unless `text` is UTF-8.
void CheckUtf8(const std::string& text, const std::string& source);

}  // namespace riffle::cli
