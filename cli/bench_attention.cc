// riffle bench attention: times of paged attention: decode beside reading the same pages, prefill
// beside the peak of dot products.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/attention_cases.h"
#include "cli/bench_run.h"
#include "cli/commands.h"
#include "cli/report.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription =
    "Paged attention beside this machine's read bandwidth and peak";

constexpr const char* kDetails =
    "bf16, pages of 16 tokens in a random order, 8 KV heads, 4 query heads each, head_dim 128, "
    "unless\n"
    "the name says otherwise. D1: decode of 32 sequences of 4096 keys; D2: one of 131072; D3: 8 "
    "of\n"
    "2048, 8 heads on 1, head_dim 256; D4: 64 of 1 to 4096. P1: prefill of 2048 tokens, causal; "
    "P2:\n"
    "512 tokens after 8192. mask: the same by a matrix of bools; blocks: four sequences of 512, or "
    "one\n"
    "of 2048 whose mask keeps them apart. D1 and D2 also over pages of e4m3, e5m2, int8 (a scale "
    "for each row), "
    "Q8_0\n"
    "and Q4_0, and with f32 queries over f16 (f32-f16). MLA16, MLA128: decode of 32 sequences of "
    "4096\n"
    "keys, 16 or 128 query heads on one KV head of head_dim 576 whose first 512 elements are the "
    "value;\n"
    "long: one sequence of 65536. MLA-prefill: 2048 tokens, 16 heads of 192 with values of 128; "
    "MLA-absorbed:\n"
    "256 tokens of 16 heads over 4096 such latent keys. ratio7: 7 query heads for each KV head.\n"
    "A sample of every answer is first compared with a softmax in double.\n"
    "`read` is a maximum over the same pages in the same order with the same prefetching, "
    "measured\n"
    "in turn with the call; `share` is read / time. `peak` is dot products on registers, measured\n"
    "beside the case; the causal half is counted once. Let nothing else run meanwhile.\n"
    "\n"
    "Examples:\n"
    "  riffle bench attention --quick            the cases of up to 100 MB\n"
    "  riffle bench attention --only D1 --json   the cases whose name contains D1";

constexpr BenchCommand kCommand = {
    "attention", kDescription, kDetails, "short measurements, nothing above 100 MB", 0.5, 0.1};

nlohmann::ordered_json ToJson(const AttentionCase& what) {
  return {{"name", what.name},
          {"sequences", what.kv_lens.size()},
          {"decode", what.decode()},
          {"kv_heads", what.kv_heads},
          {"group", what.group},
          {"head_dim", what.head_dim},
          {"page_size", what.page_size},
          {"q_dtype", Name(what.q_dtype)},
          {"dtype", Name(what.dtype)},
          {"format", Name(what.format)},
          {"value_dim", what.values_dim()}};
}

void Run(const BenchArguments& arguments) {
  const std::vector<AttentionCase> cases =
      CasesNamed(arguments.only, AttentionCases(arguments.quick));
  BenchRun run(kCommand, arguments);
  for (const AttentionCase& what : cases) {
    run.Show(ToJson(what), RunAttentionCase(what, run.min_seconds(), run.pool()));
  }
  run.Finish();
}

}  // namespace

void AddBenchAttentionCommand(CLI::App& bench) { AddBenchCommand(bench, kCommand, Run); }

}  // namespace riffle::cli
