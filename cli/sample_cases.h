// The cases that `riffle bench sample` measures, and how to run one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/roofline.h"
#include "riffle/types.h"

namespace riffle::cli {

struct SampleCase {
  std::string name;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  bool logprobs = false;
  float deviation = 3;  // of the logits, which are normally distributed
  int64_t high = 0;     // how many logits of a row are raised to 16 and a little more
  DType dtype = DType::kF32;
  int64_t rows = 32;
  int64_t vocab = 262144;
};

std::vector<SampleCase> SampleCases();

// Makes logits, checks the tokens of some draws and their log-probabilities against the scalar
// reference in double, then measures. Throws std::runtime_error if an answer is wrong: wrong
// results are not timed.
RooflineLine RunSampleCase(const SampleCase& what, double min_seconds, ThreadPool* pool);

}  // namespace riffle::cli
