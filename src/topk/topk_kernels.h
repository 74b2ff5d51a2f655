// What a door hands to the kernels: checked, planned, and the same for every SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "riffle/topk.h"
#include "topk/topk_plan.h"

namespace riffle::topk {

// One row or one range of a row.
struct RowTask {
  const void* x = nullptr;  // [n]
  DType dtype = DType::kF32;
  int64_t n = 0;  // > 0
  int64_t k = 0;  // 1..n
  bool sorted = true;
  bool largest = true;
  BucketPlan plan;
  void* values = nullptr;           // [k], null: not wanted
  int32_t* indices = nullptr;       // [k]; where wide_indices are wanted: their second half
  int64_t* wide_indices = nullptr;  // [k], null: not wanted
  TopKStats* stats = nullptr;       // null: not wanted
};

struct LaneOptions {
  int lanes = 128;
  std::span<const int> schedule;  // not empty, increasing
};

// Bytes of scratch that one call of a kernel needs, and of the maxima of one row.
size_t BucketMaximaScratch(const RowTask& task);
size_t MaximaBytes(const RowTask& task);
size_t LaneSortScratch(const RowTask& task, const LaneOptions& options);

struct NarrowRows;

// What the maxima of a first pass are made of; the cheaper two suit some rows only.
enum class FirstPass : uint8_t {
  kPositive,  // the bits, in the order of the values where they are positive: where k maxima are
  kNegative,  // the reverse of it, where not even k buckets have an element with a clear sign bit;
              // such a bucket's key is 1, above all others
  kKeyed,     // keys, for any row
};

// Pre for all: scratch has the bytes stated above, 64-byte aligned.
struct TopKKernels {
  // A whole row on one thread.
  void (*row)(const RowTask& task, uint8_t* scratch);

  // Rows [begin, end) of few columns, `narrow_lanes` at once.
  void (*narrow)(const NarrowRows& rows, size_t begin, size_t end, uint8_t* scratch);
  int64_t (*narrow_lanes)(DType dtype);

  // A row in steps, for those whose first pass is split over threads. `first` computes the maxima
  // of buckets [begin, end), begin a multiple of kMinBucket, and returns false when the bits are
  // not in the order of the values: then only kKeyed will do.
  bool (*first)(const RowTask& task, int64_t begin, int64_t end, FirstPass pass, uint8_t* maxima);
  // What suits a row whose maxima are those of kPositive.
  FirstPass (*suited)(const RowTask& task, uint8_t* maxima);
  void (*finish)(const RowTask& task, FirstPass pass, uint8_t* maxima, uint8_t* scratch);
};

const TopKKernels& Kernels();
void RunLaneSort(const RowTask& task, const LaneOptions& options, uint8_t* scratch);

}  // namespace riffle::topk
