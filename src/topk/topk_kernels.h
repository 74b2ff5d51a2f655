// What a door hands to the kernels: checked, planned, and the same for every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_plan.h"

namespace riffle {

// One row or one range of a row.
struct RowTask {
  const void* x = nullptr;  // [n]
  DType dtype = DType::kF32;
  int64_t n = 0;        // > 0
  int64_t k = 0;        // 1..n
  bool sorted = true;
  BucketPlan plan;
  void* values = nullptr;      // [k], null: not wanted
  int32_t* indices = nullptr;  // [k]
  TopKStats* stats = nullptr;  // null: not wanted
};

struct LaneOptions {
  int lanes = 128;
  std::span<const int> schedule;  // not empty, increasing
};

// Bytes of scratch that one call of a kernel needs.
size_t BucketMaximaScratch(const RowTask& task);
size_t BucketMaximaShared(const RowTask& task);  // of `maxima` below
size_t LaneSortScratch(const RowTask& task, const LaneOptions& options);

// Pre for all: scratch has the bytes stated above, 64-byte aligned.
struct TopKKernels {
  void (*bucket_maxima)(const RowTask& task, uint8_t* scratch);
  void (*lane_sort)(const RowTask& task, const LaneOptions& options, uint8_t* scratch);

  // bucket_maxima in two steps, for rows that are split over threads. `first` computes the maxima of
  // buckets [begin, end), begin a multiple of kMinBucket, and returns whether their bits were in
  // order (see select-inl.h); `finish` is given the conjunction over all parts.
  bool (*first)(const RowTask& task, int64_t begin, int64_t end, bool keyed, uint8_t* maxima);
  void (*finish)(const RowTask& task, bool ok, bool keyed, uint8_t* maxima, uint8_t* scratch);
  bool (*wants_keys)(const RowTask& task);
};

const TopKKernels& Kernels();

}  // namespace riffle
