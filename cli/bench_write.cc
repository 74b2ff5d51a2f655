// riffle bench write: times of writing keys and values into pages, beside copying the same bytes.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_run.h"
#include "cli/commands.h"
#include "cli/write_cases.h"

namespace riffle::cli {
namespace {

constexpr const char* kDetails =
    "Keys and values of 1, 32 or 2048 tokens, 8 KV heads, head_dim 128, from bf16 unless the name\n"
    "says otherwise, into pages of 16 tokens in a random order. e4m3 and int8 compute a scale a\n"
    "row. What is written is first compared with the tokens. `read` is here a copy of the tokens'\n"
    "bytes by the same threads, measured in turn with the call, through memory of the size of the\n"
    "pools; `share` is copy / time; times of small calls are means of 256. Let nothing else run\n"
    "meanwhile.\n"
    "\n"
    "Examples:\n"
    "  riffle bench write\n"
    "  riffle bench write --only bf16 --json     the cases whose name contains bf16";

constexpr BenchCommand kCommand = {
    "write",  "Writing keys and values beside copying the same bytes",
    kDetails, "short measurements",
    0.3,      0.05,
    16};

nlohmann::ordered_json ToJson(const WriteCase& what) {
  return {{"name", what.name},         {"tokens", what.tokens},       {"from", Name(what.from)},
          {"dtype", Name(what.dtype)}, {"format", Name(what.format)}, {"kv_heads", what.kv_heads},
          {"head_dim", what.head_dim}};
}

void Run(const BenchArguments& arguments) {
  const std::vector<WriteCase> cases = CasesNamed(arguments.only, WriteCases());
  BenchRun run(kCommand, arguments);
  for (const WriteCase& what : cases) {
    run.Show(ToJson(what), RunWriteCase(what, run.min_seconds(), run.pool()));
  }
  run.Finish();
}

}  // namespace

void AddBenchWriteCommand(CLI::App& bench) { AddBenchCommand(bench, kCommand, Run); }

}  // namespace riffle::cli
