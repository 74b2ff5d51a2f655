// Attention over named rows by slow loops in double, for tests.
#pragma once

#include <cstdint>
#include <vector>

namespace riffle::test {

struct ReferenceHead {
  std::vector<double> out;
  double lse = 0;  // with the sink
};

// One head: q [d] over rows [n][d], whose first value_dim elements are the values. `sink` is a
// logit, -inf for none.
ReferenceHead ReferenceAttend(const std::vector<double>& q,
                              const std::vector<std::vector<double>>& rows, int64_t value_dim,
                              double scale, double sink);

// The values of a coded row: 656 bytes; or the 576 bytes of a row and its 8 of scales.
std::vector<double> DecodeMla656(const uint8_t* row);
std::vector<double> DecodeMla584(const uint8_t* row, const uint8_t* scales);

}  // namespace riffle::test
