// riffle bench sample: times of drawing tokens, beside reading the logits.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_run.h"
#include "cli/commands.h"
#include "cli/sample_cases.h"

namespace riffle::cli {
namespace {

constexpr const char* kDetails =
    "A token of each of 32 rows of 262144 f32 logits, normally distributed, deviation 3 (wide: "
    "1).\n"
    "Tokens of 16 draws are first compared with the columns that a full sort in double leaves,\n"
    "log-probabilities with those in double. `read` is a maximum over the same bytes by the same\n"
    "threads, measured in turn with the call; `share` is read / time. Let nothing else run\n"
    "meanwhile.\n"
    "\n"
    "Examples:\n"
    "  riffle bench sample\n"
    "  riffle bench sample --only top-p --json       the cases whose name contains top-p";

constexpr BenchCommand kCommand = {"sample", "Drawing tokens beside this machine's read bandwidth",
                                   kDetails, "short measurements",
                                   0.3,      0.05,
                                   18};

nlohmann::ordered_json ToJson(const SampleCase& what) {
  return {{"name", what.name},         {"rows", what.rows},           {"vocab", what.vocab},
          {"top_k", what.top_k},       {"top_p", what.top_p},         {"min_p", what.min_p},
          {"logprobs", what.logprobs}, {"deviation", what.deviation}, {"high", what.high},
          {"dtype", Name(what.dtype)}};
}

void Run(const BenchArguments& arguments) {
  const std::vector<SampleCase> cases = CasesNamed(arguments.only, SampleCases());
  BenchRun run(kCommand, arguments);
  for (const SampleCase& what : cases) {
    run.Show(ToJson(what), RunSampleCase(what, run.min_seconds(), run.pool()));
  }
  run.Finish();
}

}  // namespace

void AddBenchSampleCommand(CLI::App& bench) { AddBenchCommand(bench, kCommand, Run); }

}  // namespace riffle::cli
