// riffle llama: adds libggml-cpu-riffle.so to the CPU backends of llama.cpp, and removes it.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/llama_folders.h"
#include "cli/streams.h"

namespace riffle::cli {
namespace {

namespace fs = std::filesystem;

struct LlamaOptions {
  std::string folder;
  std::string file;
  bool yes = false;
};

std::vector<LlamaFolder> Folders(const LlamaOptions& options) {
  if (!options.folder.empty()) {
    return {InspectLlamaFolder(options.folder)};
  }
  return FindLlamaFolders();
}

void PrintStatus(const LlamaOptions& options) {
  const std::vector<LlamaFolder> folders = Folders(options);
  for (const LlamaFolder& folder : folders) {
    fmt::print("{}\n  {} variants of the CPU backend, ggml {}; {}\n", folder.path.string(),
               folder.variants, folder.ggml.empty() ? "of unknown version" : folder.ggml,
               folder.installed ? "with Riffle" : "without Riffle");
  }
  if (folders.empty()) {
    fmt::print("no llama.cpp with variants of its CPU backend was found\n");
  }
}

// The folder to change: the one that the user names, or the only one that was found.
LlamaFolder Choose(const LlamaOptions& options, const char* command) {
  const std::vector<LlamaFolder> folders = Folders(options);
  if (folders.empty()) {
    FailInput(
        "no llama.cpp with variants of its CPU backend was found; name the folder that holds its "
        "libggml-cpu-*.so: riffle llama {} DIR",
        command);
  }
  if (folders.size() > 1) {
    PrintStatus(options);
    FailInput("there are {} of them; name one: riffle llama {} DIR", folders.size(), command);
  }
  return folders[0];
}

// Returns true with --yes, or if a person agrees.
bool Agreed(const LlamaOptions& options, const std::string& what) {
  if (options.yes) {
    fmt::print("{}\n", what);
    return true;
  }
  if (isatty(STDIN_FILENO) == 0) {
    FailInput("{}: nobody is there to be asked; --yes agrees beforehand", what);
  }
  PrintToStderr(what + " [y/N] ");
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

void Install(const LlamaOptions& options) {
  const fs::path file = options.file.empty() ? FindLlamaBackend() : fs::path(options.file);
  std::error_code error;
  if (!fs::is_regular_file(file, error)) {
    FailInput("{} is not there; `make llama` builds it, and --file names one",
              file.empty() ? std::string(kLlamaBackend) : "'" + file.string() + "'");
  }
  const LlamaFolder folder = Choose(options, "install");
  const fs::path target = folder.path / kLlamaBackend;
  if (!Agreed(options, fmt::format("copy {} to {}", file.string(), target.string()))) {
    return;
  }
  // Copies to a new file and renames it, so that a llama.cpp that starts meanwhile sees a whole
  // file, and one that runs keeps the file that it has mapped.
  const fs::path fresh = folder.path / (std::string(".") + kLlamaBackend + ".new");
  fs::copy_file(file, fresh, fs::copy_options::overwrite_existing, error);
  if (!error) {
    fs::rename(fresh, target, error);
  }
  if (error) {
    std::error_code ignored;
    fs::remove(fresh, ignored);
    FailRun("cannot write {}: {}", target.string(), error.message());
  }
  fmt::print(
      "installed; RIFFLE_GGML_LOG=1 shows what it does, `riffle llama uninstall` undoes it\n");
}

void Uninstall(const LlamaOptions& options) {
  const LlamaFolder folder = Choose(options, "uninstall");
  const fs::path target = folder.path / kLlamaBackend;
  if (!folder.installed) {
    fmt::print("{} is without Riffle\n", folder.path.string());
    return;
  }
  if (!Agreed(options, fmt::format("remove {}", target.string()))) {
    return;
  }
  std::error_code error;
  fs::remove(target, error);
  if (error) {
    FailRun("cannot remove {}: {}", target.string(), error.message());
  }
}

}  // namespace

void AddLlamaCommand(CLI::App& parent) {
  CLI::App* llama =
      parent.add_subcommand("llama", "Puts Riffle's attention into an installed llama.cpp");
  llama->require_subcommand(1);
  auto options = std::make_shared<LlamaOptions>();
  const auto add = [&](const char* name, const char* help, void (*run)(const LlamaOptions&)) {
    CLI::App* command = llama->add_subcommand(name, help);
    command->add_option("DIR", options->folder,
                        "the folder of libggml-cpu-*.so; without it, where they usually are");
    command->callback([options, run] { run(*options); });
    return command;
  };
  add("status", "The llama.cpp installations that were found, and which have Riffle", PrintStatus);
  CLI::App* install = add("install", "Copies libggml-cpu-riffle.so there, after asking", Install);
  install->add_option("--file", options->file, "the file; without it, the one built with riffle");
  install->add_flag("--yes", options->yes, "do not ask");
  CLI::App* uninstall = add("uninstall", "Removes it from there, after asking", Uninstall);
  uninstall->add_flag("--yes", options->yes, "do not ask");
}

}  // namespace riffle::cli
