// A checked call of the linear layer: which words it takes, and rows of x as words.
#pragma once

#include <cstdint>

#include "core/lease.h"
#include "lm_head/linear_kernels.h"
#include "riffle/linear_topk.h"

namespace riffle::lm_head {

class LinearCall {
 public:
  LinearCall(const MatrixView& x, const WeightView& weight, const LinearOptions& options);

  // Bytes of the words of `rows` rows.
  size_t WordBytes(int64_t rows) const;

  // Lays out rows [begin, begin + rows) at `words`; with `order`, those it names from there on.
  const LinearArgs& Take(const int32_t* order, int64_t begin, int64_t rows, uint8_t* words,
                         core::Lease& lease);

  const LinearKernels& kernels() const { return kernels_; }
  const LinearArgs& args() const { return args_; }
  int64_t rows() const { return x_.rows; }

 private:
  const LinearKernels& kernels_;
  MatrixView x_;
  bool round_ = false;
  LinearArgs args_;
};

// Top-k of `rows` rows of a call, those that `order` names or, if it is null, the first ones.
class PlainTopK {
 public:
  PlainTopK(const LinearCall& call, int64_t rows, int64_t k, int threads);
  size_t shared_bytes() const { return word_bytes_ + kept_.bytes; }
  size_t scratch_bytes() const;
  // Pre: at most as many rows as planned for; `shared` and the lease's scratch have those bytes.
  void Run(LinearCall& call, const int32_t* order, int64_t rows, const LinearTopKOut& out,
           uint8_t* shared, core::Lease& lease) const;

 private:
  PiecePlan pieces_;
  CandidateSink sink_;
  FinishTask finish_;
  KeptLayout kept_;
  size_t word_bytes_;
};

}  // namespace riffle::lm_head
