// What `riffle bench topk` measures, and how one section of it is run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/distributions.h"
#include "cli/huge_buffer.h"
#include "cli/measure.h"
#include "riffle/riffle.h"

namespace riffle::cli {

struct BenchCase {
  std::string name;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
  Distribution distribution = Distribution::kNormal;
  Algorithm algorithm = Algorithm::kAuto;
  bool per_row = false;  // TopKPerRow over whole rows instead of TopK
  PageKind page_kind = PageKind::kHuge;
};

// Cases that are compared with each other, and therefore measured in turn.
struct BenchSection {
  std::string title;
  std::vector<BenchCase> cases;
  bool ratios = false;  // compare each case with its dtype's normal one, which then always runs
};

// A case's figures. `read` is ReadMax over the same bytes with the same pool.
struct BenchLine {
  BenchCase what;
  double bytes = 0;
  std::string pages;
  Timing time;
  Timing read;
  double ratio = 0;  // of the median to the normal case's; 0 in sections without ratios

  double share() const { return read.median / time.median; }
};

const char* ShortName(DType dtype);

// All sections; `quick` leaves out the matrix that does not fit in a cache.
std::vector<BenchSection> BenchSections(bool quick);

// Sections and cases whose name contains `part`, with the normal cases that they are compared with.
std::vector<BenchSection> Select(const std::vector<BenchSection>& sections,
                                 const std::string& part);

// Makes the data, checks every answer against the reference, then measures. Throws
// std::runtime_error if an answer is wrong: wrong results are not timed.
std::vector<BenchLine> RunSection(const BenchSection& section, double min_seconds, ThreadPool* pool,
                                  const std::function<void(const std::string&)>& progress);

}  // namespace riffle::cli
