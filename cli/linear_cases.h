// What `riffle bench linear` measures, and how the cases of one matrix are run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/roofline.h"
#include "riffle/linear_topk.h"

namespace riffle::cli {

// An LM head and the numbers of rows it is multiplied with.
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

// Matrices with the rows whose name contains `part`; `quick` leaves out what needs more than
// 200 MB.
std::vector<LinearMatrix> LinearMatrices(bool quick, const std::string& part);
std::string CaseName(const LinearMatrix& what, int64_t rows);

// Makes the weights, holds answers against sums in double, then measures; `done` hears of each
// line. Throws std::runtime_error when an answer is wrong: what is wrong is not timed.
void RunLinearCases(const LinearMatrix& what, double min_seconds, ThreadPool* pool,
                    const std::function<void(int64_t rows, const RooflineLine&)>& done);

}  // namespace riffle::cli
