// riffle info: the version, the SIMD targets and the machine.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "cli/commands.h"
#include "cli/report.h"
#include "engine/printable.h"
#include "riffle/runtime.h"

namespace riffle::cli {
namespace {

constexpr const char* kTargetVariable = "RIFFLE_TARGET";
constexpr const char* kThreadsVariable = "RIFFLE_NUM_THREADS";

std::string FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? "not set" : "set to " + engine::Quote(value);
}

void PrintText() {
  fmt::print("riffle {}\n", Version());
  fmt::print("CPU       {}\n", CpuName());
  fmt::print("target    {}\n", Target());
  fmt::print("targets   {}, best first\n", fmt::join(Targets(), ", "));
  fmt::print("threads   {}\n\n", NumThreads());
  fmt::print(
      "{}        {}. The SIMD target that kernels run on, one of the above;\n"
      "                     without it the best. Answers of top-k are the same on all of them.\n",
      kTargetVariable, FromEnvironment(kTargetVariable));
  fmt::print(
      "{}   {}. Threads of a call, the caller's included, 1 to 1024;\n"
      "                     without it one for each CPU the process may use. Answers do not "
      "depend\n"
      "                     on it.\n",
      kThreadsVariable, FromEnvironment(kThreadsVariable));
}

void PrintJson() {
  const auto environment = [](const char* name) -> nlohmann::ordered_json {
    const char* value = std::getenv(name);
    return value == nullptr ? nlohmann::ordered_json() : nlohmann::ordered_json(value);
  };
  const nlohmann::ordered_json json = {{"version", Version()},
                                       {"cpu", CpuName()},
                                       {"target", Target()},
                                       {"targets", Targets()},
                                       {"threads", NumThreads()},
                                       {"environment",
                                        {{kTargetVariable, environment(kTargetVariable)},
                                         {kThreadsVariable, environment(kThreadsVariable)}}}};
  fmt::print("{}\n", Dump(json, 2));
}

}  // namespace

void AddInfoCommand(CLI::App& parent) {
  CLI::App* command =
      parent.add_subcommand("info", "Version, CPU, SIMD targets, threads, and what changes them");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "one JSON object");
  command->callback([json] { *json ? PrintJson() : PrintText(); });
}

}  // namespace riffle::cli
