// What commands print: times and sizes for people, results as JSON.
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

// A value as JSON: a number, or a text for "nan", "inf" and "-inf", which JSON numbers cannot
// express.
nlohmann::ordered_json JsonValue(float value);
nlohmann::ordered_json JsonStats(const TopKStats& stats);

// Indented by `indent`; -1 means one line. Paths and environment variables may be any bytes: those
// that are not UTF-8 become replacement characters.
std::string Dump(const nlohmann::ordered_json& json, int indent);

// "AMD EPYC", as the operating system names it; "unknown CPU" if it does not.
std::string CpuName();

// A pool of `threads` threads; for 0 null, which means the library's default pool.
std::unique_ptr<ThreadPool> MakePool(int threads);

}  // namespace riffle::cli
