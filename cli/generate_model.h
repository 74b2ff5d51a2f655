// The model of `riffle generate`: its file, what is read of it before the weights, and the requests
// it gets.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/generate_arguments.h"
#include "cli/mapped_files.h"
#include "engine/chat_template.h"
#include "engine/engine.h"
#include "engine/gguf/gguf.h"
#include "engine/tokenizer/tokenizer.h"

namespace riffle::cli {

struct GenerateModel {
  engine::GgufFile file;
  MappedFile mapped;
  engine::ModelSpec spec;
  engine::Tokenizer tokenizer;
  std::optional<engine::ChatTemplate> chat;  // with --chat
  int64_t context;                           // tokens of a request

  // Throws BadModel, BadInput.
  explicit GenerateModel(const GenerateArguments& arguments);

  // A request as the options have it, without its prompt.
  engine::Request MakeRequest(const GenerateArguments& arguments) const;
  // The tokens of a conversation, which ends with a question.
  std::vector<int32_t> Encode(const std::vector<engine::ChatMessage>& messages) const;
};

// What the engine is made with, but for its pages.
engine::EngineOptions OptionsOf(const GenerateArguments& arguments);

// --list-models: the models in the folder of scripts/model.sh.
void ListModels(bool json);

}  // namespace riffle::cli
