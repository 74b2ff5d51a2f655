// The model of `riffle generate`: its file, what is read from the file before the weights, and the
// requests made for the model.
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

  // A request with the values of the options, without a prompt.
  engine::Request MakeRequest(const GenerateArguments& arguments) const;
  // The tokens of a conversation. Pre: its last message is a question.
  std::vector<int32_t> Encode(const std::vector<engine::ChatMessage>& messages) const;
};

// The options that the engine is made with, except the number of its pages.
engine::EngineOptions OptionsOf(const GenerateArguments& arguments);

// --list-models: the models in the folder of scripts/model.sh.
void ListModels(bool json);

}  // namespace riffle::cli
