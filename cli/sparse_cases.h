// The cases that `riffle bench sparse` measures, and how to run one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/roofline.h"
#include "riffle/sparse_attention.h"

namespace riffle::cli {

// kLogits, kTopK: the indexer, 64 heads of 128. kAttend: attention over named rows. kStep: kTopK,
// then kAttend over what it selects; kDense: attention over all rows.
enum class SparseWork : uint8_t { kLogits, kTopK, kAttend, kStep, kDense };

struct SparseCase {
  std::string name;
  SparseWork work = SparseWork::kAttend;
  int64_t queries = 1;
  int64_t context = 131072;  // tokens
  bool int8_keys = true;     // false: DeepGEMM's e4m3
  int64_t window = 0;        // V4: rows of a second scope
  int64_t k = 2048;
  SparseRowFormat rows = SparseRowFormat::kPlain;  // kPlain: bf16
  int64_t heads = 128;

  int64_t row_dim() const { return rows == SparseRowFormat::kMla584 ? 512 : 576; }
  double operations() const;  // 0 for kStep
  double bytes() const;       // of keys and rows that are read
  bool needs_keys() const { return work != SparseWork::kAttend && work != SparseWork::kDense; }
  bool needs_rows() const { return work >= SparseWork::kAttend; }
};

// `quick`: contexts up to 131072.
std::vector<SparseCase> SparseCases(bool quick);

// Makes the data, checks a sample of the answers, then measures. Throws std::runtime_error if an
// answer is wrong.
RooflineLine RunSparseCase(const SparseCase& what, double min_seconds, ThreadPool* pool);

}  // namespace riffle::cli
