// A batch as kernels read it: checked, copied and planned.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/attention_plan.h"
#include "attention/mask_args.h"
#include "core/lease.h"
#include "riffle/attention.h"

namespace riffle::attention {

// Lengths and page numbers are copies, so that changes to the caller's arrays after the check
// cannot make a kernel read outside of the pool.
struct PlannedBatch {
  Plan plan;
  PlanOut out;
  std::span<int32_t> kv_lens;       // [sequences]
  std::span<int32_t> cu_q_lens;     // [sequences + 1], or empty: one query a sequence
  std::span<uint8_t> causal;        // [sequences], or empty: as the call's options say
  std::span<int64_t> page_begin;    // [sequences]: the first of a sequence's page_numbers
  std::span<int32_t> page_numbers;  // of all sequences, one after the other
  std::span<uint8_t> mask_codes;    // room for FindMaskCodes
  MaskArgs mask;                    // set once FindMaskCodes has run

  const WorkItem* ChunkBegin(int64_t chunk) const {
    return out.items.data() + out.chunk_begin[static_cast<size_t>(chunk)];
  }
};

// Plans a batch in the caller's memory. The constructor measures how much it needs.
class BatchPlanner {
 public:
  // Keeps references to its arguments. `batch` has been checked (CheckBatch), except for the
  // entries of its page table. `tokens` are q's.
  BatchPlanner(const AttentionShape& shape, const PagedKv& keys, const PagedBatch& batch,
               int64_t tokens, const AttentionOptions& options, int threads);

  size_t bytes() const { return bytes_; }  // a multiple of 64
  const Plan& plan() const { return plan_; }

  // Pre: `memory` has bytes() bytes, 64-byte aligned. The lease's threads find the mask's codes.
  // Throws Error: kBadPage; kBadRange if lengths have changed since they were checked.
  PlannedBatch Place(uint8_t* memory, core::Lease& lease) const;

 private:
  void Copy(const PlannedBatch& to) const;

  const AttentionShape& shape_;
  const PagedKv& keys_;
  const PagedBatch& batch_;
  int64_t tokens_;
  const AttentionOptions& options_;
  int threads_;
  Plan plan_;
  size_t pages_ = 0;
  size_t mask_codes_ = 0;
  int64_t longest_ = 0;  // of kv_lens
  size_t bytes_ = 0;
};

}  // namespace riffle::attention
