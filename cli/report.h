// What commands print: times and sizes for readers, and results as JSON.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "riffle/topk.h"
#include "riffle/types.h"

namespace riffle::cli {

std::string FormatSeconds(double seconds);  // "67.3 us", "1.25 ms"
std::string FormatBytes(double bytes);      // "12.9 MB", decimal
double Gigabytes(double bytes);

const char* Name(Algorithm algorithm);  // "auto", "bucket_maxima", "lane_sort"

// A value as JSON: a number, or the texts "nan", "inf" and "-inf", for which JSON has no numbers.
nlohmann::ordered_json JsonValue(float value);
nlohmann::ordered_json JsonStats(const TopKStats& stats);

// Indented by `indent`, -1 for one line. Paths and variables are bytes; those that are no UTF-8 are
// shown with replacement characters.
std::string Dump(const nlohmann::ordered_json& json, int indent);

// "AMD EPYC", from the operating system; "unknown CPU" where it does not say.
std::string CpuName();

// A pool of `threads`; null, which means the library's own, for 0.
std::unique_ptr<ThreadPool> MakePool(int threads);

}  // namespace riffle::cli
