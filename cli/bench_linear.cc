// riffle bench linear: times of the fused LM head, beside reading its weights and the peak of dot
// products.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_run.h"
#include "cli/commands.h"
#include "cli/linear_cases.h"
#include "cli/report.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription =
    "The fused LM head beside this machine's read bandwidth and peak";

constexpr const char* kDetails =
    "The 64 best logits of rows of bf16 times the weights of an LM head: bf16 is 201088 tokens of\n"
    "2880 (1.16 GB), q8 is 262144 of 640 in Q8_0 (178 MB), q8-f32 the same with rows of f32. One\n"
    "row is first compared with all of its logits in double, others at the tokens they name.\n"
    "`read` is a maximum over the weights by the same threads, measured in turn with the call;\n"
    "`share` is read / time. `peak` is bf16 dot products on registers, measured beside the case.\n"
    "Let nothing else run meanwhile.\n"
    "\n"
    "Examples:\n"
    "  riffle bench linear --quick                   short measurements, without the 1.16 GB\n"
    "  riffle bench linear --only bf16-rows1 --json  the cases whose name contains bf16-rows1";

constexpr BenchCommand kCommand = {
    "linear", kDescription, kDetails, "short measurements, nothing above 200 MB", 0.5, 0.1};

std::vector<LinearMatrix> Choose(const BenchArguments& arguments) {
  std::vector<LinearMatrix> chosen = LinearMatrices(arguments.quick, arguments.only);
  if (chosen.empty()) {
    std::vector<std::string> names;
    for (const LinearMatrix& what : LinearMatrices(arguments.quick, "")) {
      for (const int64_t rows : what.rows) {
        names.push_back(CaseName(what, rows));
      }
    }
    FailNoCase(arguments.only, names);
  }
  return chosen;
}

nlohmann::ordered_json ToJson(const LinearMatrix& what, int64_t rows) {
  return {{"name", CaseName(what, rows)},
          {"rows", rows},
          {"vocab", what.vocab},
          {"d", what.d},
          {"k", what.k},
          {"weight", Name(what.format)},
          {"x", Name(what.x_dtype)}};
}

void Run(const BenchArguments& arguments) {
  const std::vector<LinearMatrix> matrices = Choose(arguments);
  BenchRun run(kCommand, arguments);
  for (const LinearMatrix& what : matrices) {
    RunLinearCases(
        what, run.min_seconds(), run.pool(),
        [&](int64_t rows, const RooflineLine& line) { run.Show(ToJson(what, rows), line); });
  }
  run.Finish();
}

}  // namespace

void AddBenchLinearCommand(CLI::App& bench) { AddBenchCommand(bench, kCommand, Run); }

}  // namespace riffle::cli
