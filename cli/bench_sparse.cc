// riffle bench sparse: times of the indexer, of attention over named rows, and of a decode step of
// both beside dense attention.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_run.h"
#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/sparse_cases.h"

namespace riffle::cli {
namespace {

constexpr const char* kDetails =
    "scores, topk: 32 queries of a context of 32768, or 1 of 131072; 64 index heads of 128; index\n"
    "keys in int8 or e4m3; k = 2048. v32: 128 heads of DeepSeek-V3.2 over 2048 rows of 131072, in\n"
    "bf16 or its 656-byte rows; v4: of DeepSeek-V4, a window of 128 and 1024 rows. step: the "
    "decode\n"
    "step of one layer, int8 indexer, selection and attention over 2048 rows; dense: 128 heads "
    "over\n"
    "all rows of the same context. A sample of every answer is first compared with results in\n"
    "double. `peak` is dot products of bf16 on registers, measured beside the case; that of int8\n"
    "is twice as much.\n"
    "Let nothing else run meanwhile.\n"
    "\n"
    "Examples:\n"
    "  riffle bench sparse --quick              contexts up to 131072\n"
    "  riffle bench sparse --only step --json   the cases whose name contains step";

constexpr BenchCommand kCommand = {"sparse", "Sparse attention beside this machine's peak",
                                   kDetails, "short measurements, contexts up to 131072",
                                   0.3,      0.05,
                                   12};

nlohmann::ordered_json ToJson(const SparseCase& what) {
  return {{"name", what.name},       {"queries", what.queries},
          {"context", what.context}, {"k", what.k},
          {"window", what.window},   {"heads", what.heads},
          {"rows", Name(what.rows)}, {"int8_keys", what.int8_keys}};
}

void Run(const BenchArguments& arguments) {
  std::vector<SparseCase> cases = SparseCases(arguments.quick);
  std::string names;
  for (const SparseCase& what : cases) {
    names += (names.empty() ? "" : " ") + what.name;
  }
  std::erase_if(cases, [&](const SparseCase& what) {
    return what.name.find(arguments.only) == std::string::npos;
  });
  if (cases.empty()) {
    FailInput("--only '{}' is part of no case; the cases are: {}", arguments.only, names);
  }
  BenchRun run(kCommand, arguments);
  for (const SparseCase& what : cases) {
    run.Show(ToJson(what), RunSparseCase(what, run.min_seconds(), run.pool()));
  }
  run.Finish();
}

}  // namespace

void AddBenchSparseCommand(CLI::App& bench) { AddBenchCommand(bench, kCommand, Run); }

}  // namespace riffle::cli
