// riffle topk: the k best of each row of a .npy file.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/measure.h"
#include "cli/npy.h"
#include "cli/numbers.h"
#include "cli/options.h"
#include "cli/reference.h"
#include "cli/report.h"
#include "cli/same_file.h"
#include "cli/streams.h"
#include "engine/printable.h"
#include "riffle/riffle.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription = "The k largest elements of each row of a .npy file";

constexpr const char* kDetails =
    "FILE.npy is float32, float16, or bfloat16 stored as uint16 (--dtype bf16), in C order; more "
    "than\n"
    "two axes are rows x last axis. It is memory-mapped. Order: NaN above inf, -0 equal to 0, and "
    "of\n"
    "equal values the lower index first. JSON has the texts \"nan\", \"inf\" and \"-inf\" where a "
    "value\n"
    "is no number.\n"
    "\n"
    "Examples:\n"
    "  riffle topk logits.npy -k 5                          a table for each row\n"
    "  riffle topk logits.npy -k 64 --dtype bf16 --json     bfloat16 in, JSON out\n"
    "  riffle topk logits.npy -k 64 --show-rows 2 --stats   two rows, and what they cost\n"
    "  riffle topk logits.npy -k 64 --show-rows 0 --time    only the time, beside reading the "
    "file\n"
    "  riffle topk logits.npy -k 64 --show-rows 0 --out-indices best.npy";

struct Arguments {
  std::string file;
  int64_t k = 0;
  bool sorted = true;
  bool json = false;
  bool stats = false;
  bool time = false;
  bool check = false;
  std::string dtype = "auto";
  std::string algorithm = "auto";
  TopKOptions options;
  std::vector<int> depth_schedule;
  int threads = 0;
  int64_t show_rows = INT64_MAX;
  int64_t show = INT64_MAX;
  double min_time = 0.3;
  std::string out_values;
  std::string out_indices;
};

// The results of one call, [rows, k].
struct Results {
  std::vector<uint8_t> values;
  std::vector<int32_t> indices;
  std::vector<TopKStats> stats;
};

struct Speed {
  Timing topk;
  Timing read;
  double share() const { return read.median / topk.median; }
};

Algorithm ParseAlgorithm(const std::string& name) {
  for (const Algorithm algorithm :
       {Algorithm::kAuto, Algorithm::kBucketMaxima, Algorithm::kLaneSort}) {
    if (name == Name(algorithm)) {
      return algorithm;
    }
  }
  FailInput("--algorithm {} is not auto, bucket_maxima or lane_sort", engine::Quote(name));
}

std::optional<DType> ParseDTypeOption(const std::string& name) {
  const std::optional<DType> dtype = ParseDType(name);
  if (!dtype.has_value() && name != "auto") {
    FailInput("--dtype {} is not auto, f32, f16 or bf16", engine::Quote(name));
  }
  return dtype;
}

void CheckOutputs(const Arguments& arguments, const NpyMatrix& input) {
  for (const std::string& path : {arguments.out_values, arguments.out_indices}) {
    if (!path.empty() && input.IsFile(path)) {
      FailInput("{}: would overwrite the input; write the results elsewhere", path);
    }
  }
  if (!arguments.out_values.empty() && !arguments.out_indices.empty() &&
      IsSameFile(arguments.out_values, arguments.out_indices)) {
    FailInput("--out-values {} and --out-indices {} are the same file", arguments.out_values,
              arguments.out_indices);
  }
}

Speed MeasureSpeed(const NpyMatrix& input, const Arguments& arguments, const TopKOut& out) {
  volatile uint8_t sink;
  const MatrixView& x = input.view();
  // Times the call without statistics: counting ties reads every row once more.
  TopKOut timed = out;
  timed.stats = nullptr;
  const Group group{
      {[&] { TopK(x, arguments.k, timed, arguments.options); },
       [&] { sink = ReadMax(x.data, input.bytes(), {.pool = arguments.options.pool}); }}};
  const auto timings = Measure({group}, arguments.min_time, [](double) {});
  return {timings[0][0], timings[0][1]};
}

// Checks the answer against one that was computed without the library.
void CheckAnswer(const NpyMatrix& input, const Arguments& arguments, const Results& results) {
  const MatrixView& x = input.view();
  const std::vector<int32_t> reference = ReferenceTopK(x, arguments.k);
  const std::string wrong =
      Compare(x, arguments.k, reference, arguments.k, results.indices, results.values.data());
  if (!wrong.empty()) {
    FailRun("wrong answer, please report it: {}", wrong);
  }
}

void PrintRow(const Arguments& arguments, const MatrixView& x, const Results& results, int64_t r) {
  fmt::print("row {}\n{:>6}  {:>10}  value\n", r, "rank", "index");
  for (int64_t i = 0; i < std::min(arguments.k, arguments.show); ++i) {
    const int64_t place = r * arguments.k + i;
    fmt::print("{:>6}  {:>10}  {}\n", i + 1, results.indices[static_cast<size_t>(place)],
               FormatValue(LoadFloat(results.values.data(), x.dtype, place)));
  }
  if (arguments.show < arguments.k) {
    fmt::print("        ... and {} more\n", arguments.k - arguments.show);
  }
  if (arguments.stats) {
    const TopKStats& stats = results.stats[static_cast<size_t>(r)];
    fmt::print(
        "        certificate: place {} has {}, which {} of the row equal; {} elements were read a "
        "second time; depth {}\n",
        arguments.k, FormatValue(static_cast<float>(stats.kth_value)), stats.ties_at_kth,
        stats.elements_examined, stats.depth);
  }
  fmt::print("\n");
}

void PrintSpeed(const Speed& speed, const NpyMatrix& input) {
  const auto bytes = static_cast<double>(input.bytes());
  fmt::print(
      "time        {} (median of {} calls, fastest {})\n"
      "reading     {} for the same {} with the same threads: {:.1f} GB/s\n"
      "bandwidth   {:.1f} GB/s, {:.0f} % of the read bandwidth\n",
      FormatSeconds(speed.topk.median), speed.topk.repetitions, FormatSeconds(speed.topk.min),
      FormatSeconds(speed.read.median), FormatBytes(bytes), Gigabytes(bytes) / speed.read.median,
      Gigabytes(bytes) / speed.topk.median, 100 * speed.share());
}

void PrintText(const Arguments& arguments, const NpyMatrix& input, const Results& results,
               const std::optional<Speed>& speed) {
  const MatrixView& x = input.view();
  const int64_t shown = std::min(x.rows, arguments.show_rows);
  for (int64_t r = 0; r < shown; ++r) {
    PrintRow(arguments, x, results, r);
  }
  if (shown < x.rows && arguments.show_rows > 0) {
    fmt::print("... and {} more rows\n\n", x.rows - shown);
  }
  if (arguments.check) {
    fmt::print("check       all {} rows agree with std::partial_sort\n", x.rows);
  }
  if (speed.has_value()) {
    PrintSpeed(*speed, input);
  }
}

// Prints one row at a time, so that a document with millions of results is never held in memory.
void PrintJson(const Arguments& arguments, const NpyMatrix& input, const Results& results,
               const std::optional<Speed>& speed) {
  const MatrixView& x = input.view();
  nlohmann::ordered_json head = {{"file", arguments.file},
                                 {"dtype", Name(x.dtype)},
                                 {"shape", std::vector(input.shape().begin(), input.shape().end())},
                                 {"k", arguments.k},
                                 {"sorted", arguments.sorted},
                                 {"algorithm", arguments.algorithm}};
  if (arguments.check) {
    head["checked"] = true;
  }
  if (speed.has_value()) {
    head["time"] = {{"topk_seconds_median", speed->topk.median},
                    {"topk_seconds_min", speed->topk.min},
                    {"read_seconds_median", speed->read.median},
                    {"read_seconds_min", speed->read.min},
                    {"bytes", input.bytes()},
                    {"read_bandwidth_share", speed->share()},
                    {"repetitions", speed->topk.repetitions}};
  }
  std::string text = Dump(head, -1);
  text.pop_back();
  fmt::print("{},\"rows\":[", text);
  for (int64_t r = 0; r < std::min(x.rows, arguments.show_rows); ++r) {
    nlohmann::ordered_json row = {{"row", r},
                                  {"indices", nlohmann::ordered_json::array()},
                                  {"values", nlohmann::ordered_json::array()}};
    for (int64_t i = 0; i < std::min(arguments.k, arguments.show); ++i) {
      const int64_t place = r * arguments.k + i;
      row["indices"].push_back(results.indices[static_cast<size_t>(place)]);
      row["values"].push_back(JsonValue(LoadFloat(results.values.data(), x.dtype, place)));
    }
    if (arguments.stats) {
      row["stats"] = JsonStats(results.stats[static_cast<size_t>(r)]);
    }
    fmt::print("{}{}", r == 0 ? "" : ",", Dump(row, -1));
  }
  fmt::print("]}}\n");
}

void SaveResults(const Arguments& arguments, const NpyMatrix& input, const Results& results) {
  std::vector<int64_t> shape(input.shape().begin(), input.shape().end());
  shape.back() = arguments.k;
  if (!arguments.out_values.empty()) {
    WriteNpy(arguments.out_values, NpyDescr(input.view().dtype), shape, results.values);
  }
  if (!arguments.out_indices.empty()) {
    WriteNpy(arguments.out_indices, kNpyInt32, shape,
             {reinterpret_cast<const uint8_t*>(results.indices.data()),
              results.indices.size() * sizeof(int32_t)});
  }
}

void Run(Arguments arguments) {
  TopKOptions& options = arguments.options;
  options.algorithm = ParseAlgorithm(arguments.algorithm);
  options.sorted = arguments.sorted;
  options.depth_schedule = arguments.depth_schedule;
  const std::unique_ptr<ThreadPool> pool = MakePool(arguments.threads);
  options.pool = pool.get();

  const NpyMatrix input(arguments.file, ParseDTypeOption(arguments.dtype));
  const MatrixView& x = input.view();
  // Checks k before anything of that size is allocated.
  if (arguments.k < 1 || arguments.k > x.cols) {
    FailInput("-k {} is not in 1..{}, the length of a row of {}", arguments.k, x.cols,
              arguments.file);
  }
  if (arguments.check && !arguments.sorted) {
    FailInput("--check compares sorted answers; leave out --unsorted");
  }
  CheckOutputs(arguments, input);

  Results results;
  const auto places = static_cast<size_t>(x.rows * arguments.k);
  constexpr const char* kWhat = "the results";
  constexpr const char* kRemedy = "give a smaller -k or fewer rows";
  results.values = Allocate<uint8_t>(places * SizeOf(x.dtype), kWhat, kRemedy);
  results.indices = Allocate<int32_t>(places, kWhat, kRemedy);
  if (arguments.stats) {
    results.stats = Allocate<TopKStats>(static_cast<size_t>(x.rows), kWhat, kRemedy);
  }
  const TopKOut out{results.values.data(), arguments.k, results.indices.data(), arguments.k,
                    arguments.stats ? results.stats.data() : nullptr};
  TopK(x, arguments.k, out, options);
  if (arguments.check) {
    CheckAnswer(input, arguments, results);
  }

  std::optional<Speed> speed;
  if (arguments.time) {
    speed = MeasureSpeed(input, arguments, out);
  }
  SaveResults(arguments, input, results);
  if (arguments.json) {
    PrintJson(arguments, input, results, speed);
  } else {
    PrintText(arguments, input, results, speed);
  }
}

}  // namespace

void AddTopKCommand(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand("topk", kDescription);
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  command->footer(kDetails);
  command->add_option("file", a.file, "the array, a .npy file")->required()->type_name("FILE.npy");
  command->add_option("-k", a.k, "how many of each row: 1 to the length of a row")
      ->required()
      ->type_name("K");
  command
      ->add_option("--dtype", a.dtype,
                   "auto, f32, f16, bf16: what the elements are; uint16 needs bf16")
      ->type_name("TYPE");
  command->add_flag("--sorted,!--unsorted", a.sorted,
                    "best first (the default), or the set in any order");
  command->add_option("--algorithm", a.algorithm, "auto, bucket_maxima or lane_sort")
      ->type_name("NAME");
  command->add_option("--lanes", a.options.lanes, "lane sort: lanes of a row, a power of two (128)")
      ->type_name("L");
  command
      ->add_option("--depth-schedule", a.depth_schedule, "lane sort: depths to try, such as 3,5,8")
      ->delimiter(',')
      ->type_name("M,...");
  command
      ->add_option("--threads", a.threads,
                   "threads, this one included; 0: RIFFLE_NUM_THREADS or all CPUs")
      ->type_name("N");
  command->add_flag("--stats", a.stats,
                    "per row: k-th value, its ties, elements read twice, depth");
  command->add_flag("--check", a.check, "hold the answer against a scalar std::partial_sort");
  command->add_flag("--time", a.time, "measure the call beside reading the same bytes");
  command->add_option("--min-time", a.min_time, "seconds to measure for (0.3)")
      ->type_name("S")
      ->check(CheckSeconds);
  command->add_option("--show-rows", a.show_rows, "print only the first R rows")
      ->type_name("R")
      ->check(CheckCount);
  command->add_option("--show", a.show, "print only the first N of a row")
      ->type_name("N")
      ->check(CheckCount);
  command->add_flag("--json", a.json, "one JSON object");
  command->add_option("--out-values", a.out_values, "save the values: [..., k], bfloat16 as uint16")
      ->type_name("FILE.npy")
      ->check(CheckGiven);
  command->add_option("--out-indices", a.out_indices, "save the indices: [..., k] int32")
      ->type_name("FILE.npy")
      ->check(CheckGiven);
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace riffle::cli
