// The `riffle` command. Exit codes: 0 success, 1 the run failed, 2 bad usage or bad input.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/mapped_files.h"
#include "cli/options.h"
#include "cli/streams.h"
#include "riffle/error.h"
#include "riffle/runtime.h"

namespace riffle::cli {
namespace {

constexpr int kRunFailed = 1;
constexpr int kBadUsage = 2;

constexpr const char* kFooter =
    "Start with:\n"
    "  riffle generate --prompt \"The capital of France is\"\n"
    "  riffle make-logits logits.npy\n"
    "  riffle topk logits.npy -k 64 --dtype bf16 --show-rows 1 --show 8 --stats --time\n"
    "Exit codes: 0 done, 1 the run failed, 2 bad usage or bad input. Errors go to stderr.\n"
    "RIFFLE_TARGET and RIFFLE_NUM_THREADS: see `riffle info`.";

// Called in exception handlers, so it neither throws nor allocates.
int Fail(int code, std::string_view text) noexcept {
  PrintToStderr("riffle: error: ");
  PrintEscaped(text, PrintToStderr);
  PrintToStderr("\n");
  return code;
}

std::string Explain(const CLI::App& app, const CLI::ParseError& error) {
  std::string path = "riffle";
  const CLI::App* command = &app;
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands()[0];
    path += " " + command->get_name();
  }
  // Names the unknown word; CLI11's own text would only say that a command is missing.
  const std::vector<std::string> unknown = command->remaining();
  const bool no_command = command->get_require_subcommand_min() > 0 && !unknown.empty();
  return fmt::format("{}\nTry `{} --help`.",
                     no_command ? fmt::format("no such command: {}", unknown[0]) : error.what(),
                     path);
}

int Main(int argc, char** argv) {
  CLI::App app("Exact top-k for language models on CPUs.", "riffle");
  app.require_subcommand(1);
  app.footer(kFooter);
  app.set_version_flag("--version", fmt::format("riffle {}", Version()));
  AddGenerateCommand(app);
  AddTopKCommand(app);
  AddPlanCommand(app);
  AddInfoCommand(app);
  AddMakeLogitsCommand(app);
  AddLlamaCommand(app);
  CLI::App* bench = app.add_subcommand("bench", "Measures this machine, answers checked first");
  bench->require_subcommand(1);
  AddBenchTopKCommand(*bench);
  AddBenchAttentionCommand(*bench);
  AddBenchLinearCommand(*bench);
  AddBenchSampleCommand(*bench);
  AddBenchSparseCommand(*bench);
  AddBenchWriteCommand(*bench);
  try {
    std::vector<std::string> arguments = ReversedArguments(argc, argv);
    app.parse(arguments);
  } catch (const CLI::Success& asked) {  // --help and --version
    app.exit(asked);
  } catch (const CLI::ParseError& error) {
    return Fail(kBadUsage, Explain(app, error));
  }
  FlushOutput();  // a full disk or a closed pipe must not look like success
  return 0;
}

}  // namespace
}  // namespace riffle::cli

int main(int argc, char** argv) {
  using riffle::cli::Fail;
  constexpr const char* kOutOfMemory = "out of memory; give less at a time";
  riffle::cli::OpenStandardStreams();
  riffle::cli::CatchShrinkingFiles();
  try {
    return riffle::cli::Main(argc, argv);
  } catch (const riffle::cli::BadInput& error) {
    return Fail(riffle::cli::kBadUsage, error.what());
  } catch (const riffle::Error& error) {
    const bool callers = error.code() != riffle::Code::kOutOfMemory;
    return Fail(callers ? riffle::cli::kBadUsage : riffle::cli::kRunFailed, error.what());
  } catch (const std::bad_alloc&) {
    return Fail(riffle::cli::kRunFailed, kOutOfMemory);
  } catch (const std::length_error&) {  // a container cannot have that many elements
    return Fail(riffle::cli::kRunFailed, kOutOfMemory);
  } catch (const std::exception& error) {
    return Fail(riffle::cli::kRunFailed, error.what());
  }
}
