// One call of TopKPerRow, or of its decode form, held against the reference, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "testing/topk_check.h"

namespace riffle::test {

// What is asked of TopKPerRow for an input.
struct Ranges {
  std::vector<int32_t> starts;
  std::vector<int32_t> ends;
  int32_t k = 1;
  bool sorted = true;
  bool index_order_if_short = false;
  Algorithm algorithm = Algorithm::kAuto;
  int threads = 1;
  int64_t gap = 0;  // elements between the rows of the output
  // next_n > 0: the decode form is called, with these lengths; see DecodeRanges.
  std::vector<int32_t> seq_lens;
  int next_n = 0;
};

std::string Describe(const Ranges& ranges);

// The ranges that the decode form stands for.
Ranges DecodeRanges(const std::vector<int32_t>& seq_lens, int next_n);

// Runs the call on the target in use.
Outcome CheckRanges(const Input& input, const Ranges& ranges);

// The same on every target of the machine, which must agree. Empty when right.
std::string CheckRangesOnAllTargets(const Input& input, const Ranges& ranges);

}  // namespace riffle::test
