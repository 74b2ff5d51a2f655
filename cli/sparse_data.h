// The arrays of a case of `riffle bench sparse`.
#pragma once

#include <cstdint>
#include <vector>

#include "cli/huge_buffer.h"
#include "cli/sparse_cases.h"
#include "riffle/riffle.h"
#include "testing/rng.h"

namespace riffle::cli {

// One sequence; pages of 64 tokens in random order. Elements have both signs, and magnitudes around
// 1; `slots` names random rows.
struct SparseData {
  explicit SparseData(const SparseCase& the_case);

  IndexKeys keys() const;
  HeadsView index_queries() const;
  PagedBatch batch() const;
  SparseRows rows() const;
  HeadsView queries() const;
  // The window, if there is one, then the rows that `slots` [queries][k] names.
  std::vector<SparseScope> scopes(const int32_t* slots) const;

  double IndexElement(int64_t slot, int64_t i) const;  // of a key, times its scale
  double IndexQuery(int64_t query, int64_t head, int64_t i) const;
  double Row(int64_t slot, int64_t i) const;
  double Query(int64_t query, int64_t head, int64_t i) const;
  int64_t Slot(int64_t position) const;

  static constexpr int64_t kPageSize = 64;
  static constexpr int64_t kIndexHeads = 64;
  static constexpr int64_t kIndexDim = 128;

  const SparseCase& what;
  int64_t pages = 0;
  HugeBuffer keys_memory, rows_memory, index_q_memory, q_memory;
  std::vector<float> scales, weights;
  std::vector<int32_t> table, kv_lens, cu_q_lens;
  std::vector<int32_t> slots, window_slots;  // [queries][k], [queries][window]

 private:
  void FillKeys(test::Rng& random);
  void FillRows(test::Rng& random);
};

}  // namespace riffle::cli
