// LinearTopK by way of the prefilter (prefilter_args.h, docs/prefilter.md).
#pragma once

#include <cstdint>

#include "core/lease.h"
#include "lm_head/linear_call.h"
#include "lm_head/prefilter/prefilter_kernels.h"
#include "riffle/linear_topk.h"

namespace riffle::lm_head {

// How the rows of a call were answered.
struct PrefilterStats {
  int64_t prefiltered = 0;  // rows answered from their candidates
  int64_t fell_back = 0;    // rows with too many candidates or without bounds: left to the caller
  int64_t multiplied = 0;   // columns multiplied exactly, in all prefiltered rows
};

class PrefilterTopK {
 public:
  // Pre: CanPrefilter(call.args()).
  PrefilterTopK(const LinearCall& call, int64_t k, int threads);

  // Bytes of shared memory and of each thread's scratch that Run needs.
  size_t shared_bytes() const { return shared_.bytes; }
  size_t scratch_bytes() const;

  // Writes the k best of all rows except those that fall back, which it lists in fell_back [rows].
  PrefilterStats Run(LinearCall& call, const LinearTopKOut& out, uint8_t* shared,
                     core::Lease& lease, int32_t* fell_back) const;

 private:
  SharedCandidates PlaceShared(uint8_t* shared, int64_t rows, PrefilterArgs& args) const;
  void Quantize(const PrefilterArgs& args, const SharedCandidates& candidates,
                core::Lease& lease) const;
  int64_t FinishRows(const PrefilterArgs& args, const SharedCandidates& candidates, int64_t begin,
                     const LinearTopKOut& out, core::Lease& lease) const;

  const PrefilterKernels& kernels_;
  int64_t k_;
  ChunkPlan chunks_;
  PrefilterPlan plan_;
  PrefilterScratch scratch_;
  PrefilterShared shared_;  // placed after the packed operands of x
  PrefilterFinish finish_;
};

}  // namespace riffle::lm_head
