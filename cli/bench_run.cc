#include "cli/bench_run.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "cli/failure.h"
#include "cli/options.h"
#include "cli/report.h"
#include "cli/streams.h"
#include "engine/printable.h"
#include "riffle/riffle.h"

namespace riffle::cli {

void FailNoCase(const std::string& only, const std::vector<std::string>& names) {
  FailInput("--only {} is part of no case; the cases are: {}", engine::Quote(only),
            fmt::join(names, " "));
}

BenchRun::BenchRun(const BenchCommand& command, const BenchArguments& arguments)
    : min_seconds_(arguments.min_time > 0 ? arguments.min_time
                   : arguments.quick      ? command.quick_seconds
                                          : command.seconds),
      json_asked_(arguments.json),
      name_width_(command.name_width) {
  if (!arguments.target.empty()) {
    SetTarget(arguments.target);
  }
  pool_ = MakePool(arguments.threads);
  const int threads = pool_ != nullptr ? pool_->threads() : NumThreads();
  json_ = {{"version", Version()},        {"cpu", CpuName()},
           {"target", Target()},          {"threads", threads},
           {"min_seconds", min_seconds_}, {"lines", nlohmann::ordered_json::array()}};
  if (!json_asked_) {
    fmt::print("riffle {}, {}, target {}, {} threads\n", Version(), CpuName(), Target(), threads);
  }
}

void BenchRun::Show(nlohmann::ordered_json fields, const RooflineLine& line) {
  if (json_asked_) {
    AddRoofline(line, &fields);
    Add(std::move(fields));
    return;
  }
  if (shown_++ == 0) {
    PrintRooflineHead(name_width_);
  }
  Print(line, name_width_);
  FlushOutput();
}

void BenchRun::Finish() const {
  if (json_asked_) {
    fmt::print("{}\n", Dump(json_, 2));
  }
}

void AddBenchCommand(CLI::App& bench, const BenchCommand& command,
                     std::function<void(const BenchArguments&)> run) {
  CLI::App* app = bench.add_subcommand(command.name, command.description);
  auto arguments = std::make_shared<BenchArguments>();
  BenchArguments& a = *arguments;
  app->footer(command.details);
  app->add_flag("--quick", a.quick, command.quick);
  app->add_option("--only", a.only, "the cases whose name contains NAME")->type_name("NAME");
  app->add_option("--target", a.target, "a SIMD target of `riffle info`")
      ->type_name("T")
      ->check(CheckGiven);
  app->add_option("--threads", a.threads, "threads; 0: RIFFLE_NUM_THREADS or all CPUs")
      ->type_name("N");
  app->add_option("--min-time", a.min_time,
                  fmt::format("seconds for each case ({}; quick {})", command.seconds,
                              command.quick_seconds))
      ->type_name("S")
      ->check(CheckSeconds);
  app->add_flag("--json", a.json, "one JSON object, seconds and bytes");
  app->callback([arguments, run = std::move(run)] { run(*arguments); });
}

}  // namespace riffle::cli
