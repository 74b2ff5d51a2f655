// LinearTopK by multiplying every column of W.
#pragma once

#include <cstdint>

#include "core/lease.h"
#include "lm_head/linear_call.h"
#include "lm_head/plain_topk_kernels.h"
#include "riffle/linear_topk.h"

namespace riffle::lm_head {

class PlainTopK {
 public:
  // Plans for at most `rows` rows of a call.
  PlainTopK(const LinearCall& call, int64_t rows, int64_t k, int threads);
  // Bytes of shared memory and of each thread's scratch that Run needs.
  size_t shared_bytes() const { return kept_.bytes; }
  size_t scratch_bytes() const;

  // Writes the k best for the rows row_list[0, rows) of the call, or for its first `rows` rows if
  // the list is null.
  void Run(LinearCall& call, const int32_t* row_list, int64_t rows, const LinearTopKOut& out,
           uint8_t* shared, core::Lease& lease) const;

 private:
  KeptLists PlaceKept(int64_t rows, uint8_t* shared) const;

  const PlainTopKKernels& kernels_;
  [[maybe_unused]] int64_t rows_;  // used by assertions only
  ChunkPlan chunks_;
  ChunkTask task_;
  FinishTask finish_;
  KeptLayout kept_;  // placed after the packed operands of x
};

}  // namespace riffle::lm_head
