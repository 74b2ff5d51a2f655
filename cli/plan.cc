// riffle plan: what top-k would do for a shape; takes no data.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/failure.h"
#include "cli/numbers.h"
#include "cli/report.h"
#include "engine/printable.h"
#include "riffle/topk.h"

namespace riffle::cli {
namespace {

constexpr const char* kDescription = "What top-k would do for a shape, and lane sort's depths";

constexpr const char* kDetails =
    "Lane sort splits a row over L lanes and keeps the best m of each. That is enough when no "
    "lane\n"
    "holds more than m of the k best: the row's depth. For data in random order the table gives "
    "the\n"
    "exact probability of each depth, for one row and for the deepest row of a batch.\n"
    "\n"
    "Examples:\n"
    "  riffle plan --n 201088 --k 64                       one row, 128 lanes\n"
    "  riffle plan --n 201088 --k 64 --lanes 128 --rows 32 --depth-schedule 3,5,8\n"
    "  riffle plan --n 129280 --k 1024 --json";

struct Arguments {
  int64_t n = 0;
  int k = 0;
  int lanes = 128;
  int64_t rows = 1;
  int threads = 0;  // 0: as many as the default pool has
  std::string dtype = "f32";
  std::vector<int> depth_schedule;
  bool json = false;
};

// One line of the table.
struct Depth {
  int depth;
  double probability;  // P(a row's depth is this)
  double row_done;     // P(a row's depth is at most this)
  double batch_done;   // P(the depth of every row is at most this)
};

// The depths up to the one at which the batch is almost certainly done; later ones do not matter.
std::vector<Depth> Depths(const Arguments& arguments) {
  constexpr double kNegligible = 1e-12;
  std::vector<Depth> depths;
  double row_done = 0;
  for (const double probability : DepthProbabilities(arguments.k, arguments.lanes)) {
    row_done = std::min(row_done + probability, 1.0);
    const double batch_done = std::pow(row_done, static_cast<double>(arguments.rows));
    depths.push_back({static_cast<int>(depths.size()) + 1, probability, row_done, batch_done});
    if (batch_done > 1 - kNegligible) {
      break;
    }
  }
  return depths;
}

const char* WayName(TopKExecution::Way way) {
  return way == TopKExecution::Way::kNarrow  ? "narrow"
         : way == TopKExecution::Way::kSplit ? "split"
                                             : "rows";
}

std::string Describe(const TopKExecution& execution, int threads) {
  if (execution.way == TopKExecution::Way::kSplit) {
    return fmt::format("the first pass of each row is split over {} threads", threads);
  }
  const char* const how =
      execution.way == TopKExecution::Way::kNarrow ? "a vector's lanes are as many rows; " : "";
  if (execution.tasks <= 1) {
    return fmt::format("{}all rows by the calling thread", how);
  }
  return fmt::format("{}{} tasks of {} rows on {} threads", how, execution.tasks,
                     execution.rows_per_task, threads);
}

void PrintText(const Arguments& arguments, const TopKPlan& plan, const TopKExecution& execution,
               const std::vector<Depth>& depths) {
  fmt::print("top {} of {} x {}\n\n", arguments.k, arguments.rows, arguments.n);
  fmt::print("algorithm        {}\n", Name(plan.algorithm));
  if (plan.buckets > 0) {
    fmt::print("bucket maxima    {} buckets of {}: at most {} of them, and ties, are read again\n",
               plan.buckets, plan.bucket_size, std::min<int64_t>(arguments.k, plan.buckets));
  } else {
    fmt::print("bucket maxima    no buckets: for this shape all elements are candidates\n");
  }
  fmt::print("execution        {}\n", Describe(execution, arguments.threads));
  fmt::print("lane sort        {} lanes, depths {} tried in turn\n\n", arguments.lanes,
             fmt::join(plan.depth_schedule, ", "));
  fmt::print("Depth: the most of the k best that share a lane, for data in random order.\n");
  fmt::print("{:>5}  {:>12}  {:>12}  {:>14}\n", "m", "P(depth=m)", "P(depth<=m)", "P(batch<=m)");
  for (const Depth& line : depths) {
    fmt::print("{:>5}  {:>12.6g}  {:>12.6g}  {:>14.6g}\n", line.depth, line.probability,
               line.row_done, line.batch_done);
  }
  fmt::print("expected depth   {:.4f} of a row, {:.4f} of the deepest of {}\n\n",
             plan.expected_depth, plan.expected_batch_depth, arguments.rows);
  fmt::print("{:>5}  {:>12}  P(all {} rows certified)\n", "step", "keeps m", arguments.rows);
  for (size_t i = 0; i < plan.depth_schedule.size(); ++i) {
    fmt::print("{:>5}  {:>12}  {:.6g}\n", i + 1, plan.depth_schedule[i], plan.batch_done[i]);
  }
}

void PrintJson(const Arguments& arguments, const TopKPlan& plan, const TopKExecution& execution,
               const std::vector<Depth>& depths) {
  nlohmann::ordered_json json = {{"n", arguments.n},
                                 {"k", arguments.k},
                                 {"rows", arguments.rows},
                                 {"lanes", arguments.lanes},
                                 {"algorithm", Name(plan.algorithm)},
                                 {"buckets", plan.buckets},
                                 {"bucket_size", plan.bucket_size},
                                 {"execution", WayName(execution.way)},
                                 {"threads", arguments.threads},
                                 {"tasks", execution.tasks},
                                 {"rows_per_task", execution.rows_per_task},
                                 {"depth_schedule", plan.depth_schedule},
                                 {"batch_done", plan.batch_done},
                                 {"expected_depth", plan.expected_depth},
                                 {"expected_batch_depth", plan.expected_batch_depth},
                                 {"depths", nlohmann::ordered_json::array()}};
  for (const Depth& line : depths) {
    json["depths"].push_back({{"depth", line.depth},
                              {"probability", line.probability},
                              {"row_done", line.row_done},
                              {"batch_done", line.batch_done}});
  }
  fmt::print("{}\n", Dump(json, 2));
}

void Run(Arguments arguments) {
  const std::optional<DType> dtype = ParseDType(arguments.dtype);
  if (!dtype) {
    FailInput("--dtype {} is not f32, bf16 or f16", engine::Quote(arguments.dtype));
  }
  if (arguments.threads == 0) {
    arguments.threads = NumThreads();
  }
  const TopKPlan plan =
      PlanTopK(arguments.n, arguments.k, arguments.rows, arguments.lanes, arguments.depth_schedule);
  const TopKExecution execution =
      PlanTopKExecution(arguments.rows, arguments.n, arguments.k, *dtype, arguments.threads);
  const std::vector<Depth> depths = Depths(arguments);
  if (arguments.json) {
    PrintJson(arguments, plan, execution, depths);
  } else {
    PrintText(arguments, plan, execution, depths);
  }
}

}  // namespace

void AddPlanCommand(CLI::App& parent) {
  CLI::App* command = parent.add_subcommand("plan", kDescription);
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  command->footer(kDetails);
  command->add_option("--n", a.n, "elements of a row")->required()->type_name("N");
  command->add_option("--k", a.k, "how many of each row, 1 to N")->required()->type_name("K");
  command->add_option("--lanes", a.lanes, "lanes of lane sort, a power of two (128)")
      ->type_name("L");
  command->add_option("--rows", a.rows, "rows of the batch (1)")->type_name("R");
  command->add_option("--threads", a.threads, "threads of the call (those of the machine)")
      ->check(CLI::PositiveNumber)
      ->type_name("T");
  command->add_option("--dtype", a.dtype, "f32, bf16 or f16 (f32)")->type_name("TYPE");
  command->add_option("--depth-schedule", a.depth_schedule, "depths to try, such as 3,5,8")
      ->delimiter(',')
      ->type_name("M,...");
  command->add_flag("--json", a.json, "one JSON object");
  command->callback([arguments] { Run(*arguments); });
}

}  // namespace riffle::cli
