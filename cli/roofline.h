// A call compared with two limits of the machine: reading its bytes, and the peak of dot products.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "cli/measure.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle::cli {

struct RooflineCase {
  std::string name;
  std::string pages;           // kind of the memory pages read
  double bytes = 0;            // that the call must read
  double operations = 0;       // 0: no comparison with dot products
  DType dtype = DType::kBF16;  // of the dot products that the peak is measured for
  std::function<void()> call;  // its answer has been checked
  std::function<void()> read;  // reads the same bytes; empty: no comparison with reading
};

struct RooflineLine {
  RooflineCase what;
  Timing time;
  std::optional<Timing> read;  // measured in turn with the call
  double peak = 0;             // FLOP/s, measured beside the case

  double read_share() const { return read->median / time.median; }
  double peak_share() const { return what.operations / time.median / peak; }
};

RooflineLine MeasureRoofline(const RooflineCase& what, double min_seconds, ThreadPool* pool);

void PrintRooflineHead(int name_width);
void Print(const RooflineLine& line, int name_width);
void AddRoofline(const RooflineLine& line, nlohmann::ordered_json* json);

}  // namespace riffle::cli
