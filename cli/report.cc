#include "cli/report.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/numbers.h"

namespace riffle::cli {

std::string FormatSeconds(double seconds) {
  if (seconds < 1e-3) {
    return fmt::format("{:.1f} us", seconds * 1e6);
  }
  return seconds < 1 ? fmt::format("{:.3f} ms", seconds * 1e3) : fmt::format("{:.3f} s", seconds);
}

double Gigabytes(double bytes) { return bytes / 1e9; }

std::string FormatBytes(double bytes) {
  if (bytes < 1e6) {
    return fmt::format("{:.1f} KB", bytes / 1e3);
  }
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6)
                     : fmt::format("{:.2f} GB", bytes / 1e9);
}

const char* Name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kAuto:
      return "auto";
    case Algorithm::kBucketMaxima:
      return "bucket_maxima";
    case Algorithm::kLaneSort:
      return "lane_sort";
  }
  return "?";
}

nlohmann::ordered_json JsonValue(float value) {
  if (std::isfinite(value)) {
    return value;
  }
  return FormatValue(value);
}

nlohmann::ordered_json JsonStats(const TopKStats& stats) {
  return {{"kth_value", JsonValue(static_cast<float>(stats.kth_value))},
          {"ties_at_kth", stats.ties_at_kth},
          {"elements_examined", stats.elements_examined},
          {"depth", stats.depth}};
}

std::string Dump(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string CpuName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown CPU";
}

std::unique_ptr<ThreadPool> MakePool(int threads) {
  return threads == 0 ? nullptr : std::make_unique<ThreadPool>(threads);
}

}  // namespace riffle::cli
