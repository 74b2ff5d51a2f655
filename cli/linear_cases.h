// The cases that `riffle bench linear` measures, and how to run those of one matrix.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/roofline.h"
#include "riffle/linear_topk.h"

namespace riffle::cli {

// The weights of an LM head, and the numbers of rows to multiply by them.
struct LinearMatrix {
  std::string name;
  int64_t vocab = 0;
  int64_t d = 0;
  WeightFormat format = WeightFormat::kBF16;
  DType x_dtype = DType::kBF16;
  int64_t k = 64;
  std::vector<int64_t> rows;

  double bytes() const;  // of the weights
};

// Matrices and rows whose names contain `part`. `quick` leaves out those that take over 200 MB.
std::vector<LinearMatrix> LinearMatrices(bool quick, const std::string& part);
std::string CaseName(const LinearMatrix& what, int64_t rows);

// Makes the weights, checks answers against sums in double, then measures; calls `done` with each
// line. Throws std::runtime_error if an answer is wrong: wrong results are not timed.
void RunLinearCases(const LinearMatrix& what, double min_seconds, ThreadPool* pool,
                    const std::function<void(int64_t rows, const RooflineLine&)>& done);

}  // namespace riffle::cli
