#include "cli/roofline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/report.h"
#include "riffle/attention.h"
#include "riffle/roofline.h"

namespace riffle::cli {

RooflineLine MeasureRoofline(const RooflineCase& what, double min_seconds, ThreadPool* pool) {
  constexpr double kPeakSeconds = 0.02;
  RooflineLine line;
  line.what = what;
  const auto peak = [&] {
    return what.operations > 0 ? DotPeak(what.dtype, kPeakSeconds, {.pool = pool}) : 0.0;
  };
  line.peak = peak();
  Group group = {{what.call}};
  if (what.read) {
    group.calls.push_back(what.read);
  }
  const auto times = Measure({std::move(group)}, min_seconds, [](double) {});
  line.peak = std::max(line.peak, peak());
  line.time = times[0][0];
  if (what.read) {
    line.read = times[0][1];
  }
  return line;
}

void PrintRooflineHead(int name_width) {
  fmt::print("\n{:<{}} {:>5} {:>10} {:>10} {:>10} {:>6} {:>7} {:>8} {:>8} {:>7}\n", "name",
             name_width, "pages", "time", "min", "read", "GB/s", "share", "GFLOP/s", "peak",
             "share");
}

void Print(const RooflineLine& line, int name_width) {
  const double seconds = line.time.median;
  const auto give = [](bool known, const char* format, double value) {
    return known ? fmt::format(fmt::runtime(format), value) : std::string("-");
  };
  const bool read = line.read.has_value();
  const bool peak = line.what.operations > 0;
  fmt::print("{:<{}} {:>5} {:>10} {:>10} {:>10} {:>6} {:>7} {:>8} {:>8} {:>7}\n", line.what.name,
             name_width, line.what.pages, FormatSeconds(seconds), FormatSeconds(line.time.min),
             read ? FormatSeconds(line.read->median) : "-",
             give(read, "{:.1f}", Gigabytes(line.what.bytes) / seconds),
             give(read, "{:.0f}%", read ? 100 * line.read_share() : 0),
             give(peak, "{:.0f}", line.what.operations / seconds / 1e9),
             give(peak, "{:.0f}", line.peak / 1e9),
             give(peak, "{:.0f}%", peak ? 100 * line.peak_share() : 0));
  std::fflush(stdout);
}

void AddRoofline(const RooflineLine& line, nlohmann::ordered_json* json) {
  (*json)["pages"] = line.what.pages;
  (*json)["bytes"] = line.what.bytes;
  (*json)["seconds_median"] = line.time.median;
  (*json)["seconds_min"] = line.time.min;
  (*json)["repetitions"] = line.time.repetitions;
  if (line.read) {
    (*json)["read_seconds_median"] = line.read->median;
    (*json)["read_seconds_min"] = line.read->min;
    (*json)["read_share"] = line.read_share();
  }
  if (line.what.operations > 0) {
    (*json)["operations"] = line.what.operations;
    (*json)["flops_per_second"] = line.what.operations / line.time.median;
    (*json)["peak_flops_per_second"] = line.peak;
    (*json)["peak_share"] = line.peak_share();
  }
}

}  // namespace riffle::cli
