// riffle bench topk: times of top-k, each beside reading the same bytes.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_cases.h"
#include "cli/bench_run.h"
#include "cli/commands.h"
#include "cli/report.h"
#include "cli/streams.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription = "Top-k beside this machine's read bandwidth";

constexpr const char* kDetails =
    "Every answer is first compared with a scalar reference. `read` is a maximum over the same "
    "bytes\n"
    "by the same threads, measured in turn with the call; `share` is read / time: how much of the\n"
    "read bandwidth the call reaches. `pages`: 2M where the kernel granted 2 MiB pages to the "
    "matrix.\n"
    "Let nothing else run meanwhile.\n"
    "\n"
    "Examples:\n"
    "  riffle bench topk --quick                        a short run without the 823 MB matrix\n"
    "  riffle bench topk --only rows32                  the cases whose name contains rows32\n"
    "  riffle bench topk --target AVX2 --threads 1 --json > avx2.json";

constexpr BenchCommand kCommand = {"topk",   kDescription,
                                   kDetails, "short measurements, no matrix larger than the caches",
                                   0.3,      0.05};

// A line on stderr that overwrites itself; nothing unless stderr is a terminal.
class Progress {
 public:
  Progress() : watched_(isatty(STDERR_FILENO) != 0) {}
  ~Progress() { Show(""); }

  void Show(const std::string& text) const {
    if (watched_) {
      PrintToStderr("\r\x1b[K" + text);
    }
  }

 private:
  bool watched_;
};

void PrintSection(const BenchSection& section, const std::vector<BenchLine>& lines) {
  fmt::print("\n{}\n{:<22} {:>15} {:>5} {:>5} {:>5} {:>11} {:>11} {:>11} {:>6} {:>6}{}\n",
             section.title, "name", "shape", "k", "type", "pages", "time", "min", "read", "GB/s",
             "share", section.ratios ? "  / normal" : "");
  for (const BenchLine& line : lines) {
    const BenchCase& what = line.what;
    fmt::print("{:<22} {:>15} {:>5} {:>5} {:>5} {:>11} {:>11} {:>11} {:>6.1f} {:>5.0f}%{}\n",
               what.name, fmt::format("{} x {}", what.rows, what.n), what.k, ShortName(what.dtype),
               line.pages, FormatSeconds(line.time.median), FormatSeconds(line.time.min),
               FormatSeconds(line.read.median), Gigabytes(line.bytes) / line.time.median,
               100 * line.share(), section.ratios ? fmt::format("  {:8.2f}", line.ratio) : "");
  }
  std::fflush(stdout);
}

nlohmann::ordered_json ToJson(const BenchSection& section, const BenchLine& line) {
  const BenchCase& what = line.what;
  nlohmann::ordered_json json = {{"section", section.title},
                                 {"name", what.name},
                                 {"rows", what.rows},
                                 {"n", what.n},
                                 {"k", what.k},
                                 {"dtype", Name(what.dtype)},
                                 {"distribution", NameOf(what.distribution)},
                                 {"algorithm", Name(what.algorithm)},
                                 {"per_row", what.per_row},
                                 {"pages", line.pages},
                                 {"bytes", line.bytes},
                                 {"seconds_median", line.time.median},
                                 {"seconds_min", line.time.min},
                                 {"repetitions", line.time.repetitions},
                                 {"read_seconds_median", line.read.median},
                                 {"read_seconds_min", line.read.min},
                                 {"bytes_per_second", line.bytes / line.time.median},
                                 {"read_bandwidth_share", line.share()}};
  if (section.ratios) {
    json["ratio_to_normal"] = line.ratio;
  }
  return json;
}

std::vector<BenchSection> Choose(const BenchArguments& arguments) {
  const std::vector<BenchSection> all = BenchSections(arguments.quick);
  std::vector<BenchSection> chosen = Select(all, arguments.only);
  if (chosen.empty()) {
    std::vector<std::string> names;
    for (const BenchSection& section : all) {
      for (const BenchCase& what : section.cases) {
        names.push_back(what.name);
      }
    }
    FailNoCase(arguments.only, names);
  }
  return chosen;
}

void Run(const BenchArguments& arguments) {
  const std::vector<BenchSection> sections = Choose(arguments);
  BenchRun run(kCommand, arguments);
  const Progress progress;
  for (const BenchSection& section : sections) {
    const auto lines =
        RunSection(section, run.min_seconds(), run.pool(),
                   [&](const std::string& what) { progress.Show(section.title + ": " + what); });
    progress.Show("");
    if (!run.json()) {
      PrintSection(section, lines);
      continue;
    }
    for (const BenchLine& line : lines) {
      run.Add(ToJson(section, line));
    }
  }
  run.Finish();
}

}  // namespace

void AddBenchTopKCommand(CLI::App& bench) { AddBenchCommand(bench, kCommand, Run); }

}  // namespace riffle::cli
