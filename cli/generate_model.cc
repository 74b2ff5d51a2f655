#include "cli/generate_model.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/failure.h"
#include "engine/arch/architectures.h"
#include "engine/default_model.h"

namespace riffle::cli {
namespace {

engine::GgufFile OpenModel(const GenerateArguments& arguments) {
  if (!arguments.model.empty()) return engine::GgufFile::Open(arguments.model);
  const std::string path = arguments.chat ? engine::ChatModelPath() : engine::DefaultModelPath();
  struct ::stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    FailInput(
        "there is no model at {}: scripts/model.sh fetches it, or --model FILE.gguf names one",
        path);
  }
  return engine::GgufFile::Open(path);
}

int64_t ContextOf(const GenerateArguments& arguments, const engine::GgufFile& file,
                  const engine::ModelSpec& spec) {
  const int64_t context = arguments.context.value_or(spec.context_length);
  if (context > spec.context_length) {
    FailInput("--context {} is more than the {} tokens that {} holds", context, spec.context_length,
              file.path());
  }
  return context;
}

struct ListedModel {
  std::string file, architecture, name, use, fault;
  int64_t context = 0;
  uintmax_t bytes = 0;
};

ListedModel Describe(const std::filesystem::path& path) {
  ListedModel listed;
  listed.file = path.string();
  try {
    listed.bytes = std::filesystem::file_size(path);
    const engine::GgufFile file = engine::GgufFile::Open(path.string());
    const engine::ModelSpec spec = engine::ReadSpec(file);
    listed.architecture = spec.architecture;
    listed.context = spec.context_length;
    if (file.Has("general.name")) listed.name = engine::Printable(file.String("general.name"));
    const auto family = engine::ChatTemplate::FamilyOf(file);
    listed.use =
        family ? fmt::format("--chat ({})", engine::ChatTemplate::NameOf(*family)) : "--prompt";
  } catch (const engine::BadModel& error) {
    listed.fault = error.what();
  } catch (const std::filesystem::filesystem_error& error) {
    listed.fault = error.what();
  }
  return listed;
}

void PrintModel(const ListedModel& model, bool json) {
  if (json) {
    nlohmann::ordered_json line = {{"file", model.file}};
    if (model.fault.empty()) {
      line.update({{"architecture", model.architecture},
                   {"name", model.name},
                   {"bytes", model.bytes},
                   {"context", model.context},
                   {"use", model.use}});
    } else {
      line["fault"] = model.fault;
    }
    fmt::print("{}\n", line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else if (model.fault.empty()) {
    fmt::print("{}\n    {} ({}), {:.0f} MB, context {}: {}\n", model.file, model.name,
               model.architecture, static_cast<double>(model.bytes) * 1e-6, model.context,
               model.use);
  } else {
    fmt::print("{}\n    cannot be run: {}\n", model.file, model.fault);
  }
}

}  // namespace

GenerateModel::GenerateModel(const GenerateArguments& arguments)
    : file(OpenModel(arguments)),
      mapped(file.path(), file.bytes().data(), file.bytes().size()),
      spec(engine::ReadSpec(file)),
      tokenizer(file),
      context(ContextOf(arguments, file, spec)) {
  if (arguments.chat) {
    chat.emplace(file, tokenizer);
    if (!arguments.system.empty()) chat->CheckSystem();
  }
}

engine::Request GenerateModel::MakeRequest(const GenerateArguments& arguments) const {
  engine::Request request;
  request.max_new_tokens = *arguments.max_new_tokens;
  request.sampling = arguments.sampling;
  request.log_probabilities = arguments.log_probabilities;
  if (chat) request.stop_tokens = {chat->end_of_turn()};
  return request;
}

std::vector<int32_t> GenerateModel::Encode(const std::vector<engine::ChatMessage>& messages) const {
  return tokenizer.Encode(chat->Render(messages));
}

engine::EngineOptions OptionsOf(const GenerateArguments& arguments) {
  engine::EngineOptions options;
  options.seed = arguments.seed;
  options.context = arguments.context.value_or(0);
  options.kv = arguments.kv_kind();
  return options;
}

void ListModels(bool json) {
  const std::string folder = engine::ModelFolder();
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".gguf") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const std::filesystem::path& file : files) PrintModel(Describe(file), json);
  if (files.empty() && !json) {
    fmt::print("There are no models in {}: scripts/model.sh fetches two.\n", folder);
  }
  if (!json) {
    fmt::print("Architectures that can be run: {}. Chat templates that are known: {}.\n",
               engine::ArchitectureNames(), engine::ChatTemplate::Names());
  }
}

}  // namespace riffle::cli
