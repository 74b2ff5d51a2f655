// riffle bench linear: times of the fused LM head, beside the time of reading its weights and the
// peak of dot products.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/linear_cases.h"
#include "cli/report.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription =
    "The fused LM head beside this machine's read bandwidth and peak";

constexpr const char* kDetails =
    "The 64 best logits of rows of bf16 times the weights of an LM head: bf16 is 201088 tokens of\n"
    "2880 (1.16 GB), q8 is 262144 of 640 in Q8_0 (178 MB). One row is first held against all of "
    "its\n"
    "logits in double, others at the tokens they name. `read` is a maximum over the weights by "
    "the\n"
    "same threads, measured in turn with the call; `share` is read / time. `peak` is bf16 dot\n"
    "products on registers, measured beside the case. Let nothing else run meanwhile.\n"
    "\n"
    "Examples:\n"
    "  riffle bench linear --quick                   short measurements, without the 1.16 GB\n"
    "  riffle bench linear --only bf16-rows1 --json  the cases whose name contains bf16-rows1";

struct Arguments {
  bool quick = false;
  bool json = false;
  std::string only;
  std::string target;
  int threads = 0;
  double min_time = 0;
};

std::vector<LinearMatrix> Choose(const Arguments& arguments) {
  std::vector<LinearMatrix> chosen = LinearMatrices(arguments.quick, arguments.only);
  if (chosen.empty()) {
    std::string names;
    for (const LinearMatrix& what : LinearMatrices(arguments.quick, "")) {
      for (const int64_t rows : what.rows) {
        names += fmt::format("{}{}", names.empty() ? "" : " ", CaseName(what, rows));
      }
    }
    FailInput("--only '{}' is part of no case; the cases are: {}", arguments.only, names);
  }
  return chosen;
}

void Print(const LinearLine& line) {
  fmt::print("{:<12} {:>5} {:>10} {:>10} {:>10} {:>6.1f} {:>6.0f}% {:>8.0f} {:>8.0f} {:>6.0f}%\n",
             line.name, line.pages, FormatSeconds(line.time.median), FormatSeconds(line.time.min),
             FormatSeconds(line.read.median), Gigabytes(line.what.bytes()) / line.time.median,
             100 * line.read_share(), line.operations() / line.time.median / 1e9, line.peak / 1e9,
             100 * line.peak_share());
  std::fflush(stdout);
}

nlohmann::ordered_json ToJson(const LinearLine& line) {
  return {{"name", line.name},
          {"rows", line.rows},
          {"vocab", line.what.vocab},
          {"d", line.what.d},
          {"k", line.what.k},
          {"weight", Name(line.what.format)},
          {"pages", line.pages},
          {"bytes", line.what.bytes()},
          {"operations", line.operations()},
          {"seconds_median", line.time.median},
          {"seconds_min", line.time.min},
          {"repetitions", line.time.repetitions},
          {"read_seconds_median", line.read.median},
          {"read_seconds_min", line.read.min},
          {"read_share", line.read_share()},
          {"flops_per_second", line.operations() / line.time.median},
          {"peak_flops_per_second", line.peak},
          {"peak_share", line.peak_share()}};
}

void Run(const Arguments& arguments) {
  const std::vector<LinearMatrix> matrices = Choose(arguments);
  if (!arguments.target.empty()) {
    SetTarget(arguments.target);
  }
  const std::unique_ptr<Pool> pool = MakePool(arguments.threads);
  const int threads = pool != nullptr ? pool->threads() : NumThreads();
  const double min_time =
      arguments.min_time > 0 ? arguments.min_time : (arguments.quick ? 0.1 : 0.5);
  nlohmann::ordered_json json = {
      {"version", Version()},    {"cpu", CpuName()},
      {"target", Target()},      {"threads", threads},
      {"min_seconds", min_time}, {"lines", nlohmann::ordered_json::array()}};
  if (!arguments.json) {
    fmt::print("riffle {}, {}, target {}, {} threads\n\n", Version(), CpuName(), Target(), threads);
    fmt::print("{:<12} {:>5} {:>10} {:>10} {:>10} {:>6} {:>7} {:>8} {:>8} {:>7}\n", "name", "pages",
               "time", "min", "read", "GB/s", "share", "GFLOP/s", "peak", "share");
  }
  for (const LinearMatrix& what : matrices) {
    RunLinearCases(what, min_time, pool.get(), [&](const LinearLine& line) {
      if (arguments.json) {
        json["lines"].push_back(ToJson(line));
      } else {
        Print(line);
      }
    });
  }
  if (arguments.json) {
    fmt::print("{}\n", Dump(json, 2));
  }
}

}  // namespace

void AddBenchLinearCommand(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("linear", kDescription);
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  command->footer(kDetails);
  command->add_flag("--quick", a.quick, "short measurements, nothing above 200 MB");
  command->add_option("--only", a.only, "the cases whose name contains NAME")->type_name("NAME");
  command->add_option("--target", a.target, "a SIMD target of `riffle info`")->type_name("T");
  command->add_option("--threads", a.threads, "threads; 0: RIFFLE_NUM_THREADS or all CPUs")
      ->type_name("N");
  command->add_option("--min-time", a.min_time, "seconds for each case (0.5; quick 0.1)")
      ->type_name("S")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", a.json, "one JSON object, seconds and bytes");
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace riffle::cli
