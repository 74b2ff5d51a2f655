// The arrays of a case of `riffle bench attention`.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/attention_cases.h"
#include "cli/huge_buffer.h"
#include "testing/rng.h"

namespace riffle::cli {

// Pages are in random order, like those of a pool that has been in use for a while. Elements have
// both signs, and magnitudes around 1.
struct AttentionData {
  explicit AttentionData(const AttentionCase& the_case);

  // Element i of a key or value at a position of sequence b, times its scale.
  double Element(const PagedKv& kv, size_t b, int position, int head, int i) const;

  const AttentionCase& what;
  std::vector<int32_t> cu_q_lens = {0};
  std::vector<int32_t> table;
  int32_t max_pages = 0;
  int32_t total_pages = 0;
  int64_t tokens = 0;
  HugeBuffer keys_memory, values_memory, scales_memory, q_memory, out_memory, mask_memory;
  HeadsView q;
  PagedKv keys, values;
  PagedBatch batch;
  AttentionMask mask;
  AttentionOut out;

 private:
  void DealPages(test::Rng& random);
  void MakeMask();
};

}  // namespace riffle::cli
