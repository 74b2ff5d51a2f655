// Compares one call of TopKPerRow or TopKPerRowDecode with the reference, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "testing/topk_check.h"

namespace riffle::test {

// The arguments of TopKPerRow besides the input.
struct Ranges {
  std::vector<int32_t> starts;
  std::vector<int32_t> ends;
  int32_t k = 1;
  bool sorted = true;
  bool index_order_if_short = false;
  Algorithm algorithm = Algorithm::kAuto;
  int threads = 1;
  int64_t gap = 0;  // elements between the rows of the output
  // If next_n > 0, TopKPerRowDecode is called with these lengths; see DecodeRanges.
  std::vector<int32_t> seq_lens;
  int next_n = 0;
};

std::string Describe(const Ranges& ranges);

// The ranges that TopKPerRowDecode derives from lengths.
Ranges DecodeRanges(const std::vector<int32_t>& seq_lens, int next_n);

// Makes the call on the target in use and checks it.
Outcome CheckRanges(const Input& input, const Ranges& ranges);

// Checks the call on every target of the machine; all must agree. Empty if everything is right.
std::string CheckRangesOnAllTargets(const Input& input, const Ranges& ranges);

}  // namespace riffle::test
