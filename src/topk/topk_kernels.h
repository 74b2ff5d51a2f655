// The kernels of top-k, and the scratch that they need.
#pragma once

#include <cstddef>
#include <cstdint>

#include "topk/topk_args.h"

namespace riffle::topk {

// Bytes of scratch that one call of a kernel needs, and of the maxima of one row.
size_t BucketMaximaScratch(const RowTask& task);
size_t MaximaBytes(const RowTask& task);
size_t LaneSortScratch(const RowTask& task, const LaneOptions& options);

// What the maxima of a first pass are made of; the cheaper two suit some rows only.
enum class FirstPass : uint8_t {
  kPositive,  // the bits, in the order of the values where they are positive: where k maxima are
  kNegative,  // the reverse of it, where not even k buckets have an element with a clear sign bit;
              // such a bucket's key is 1, above all others
  kKeyed,     // keys, for any row; the only one of integers
};

// The kernels of one dtype. `scratch` has the bytes stated above, aligned to kScratchAlignment.
struct TopKKernels {
  // A whole row on one thread.
  void (*row)(const RowTask& task, uint8_t* scratch);

  // Rows [begin, end) of few columns, `narrow_lanes` at once; 0 for dtypes that have no such way.
  void (*narrow)(const NarrowRows& rows, size_t begin, size_t end, uint8_t* scratch);
  int64_t (*narrow_lanes)();

  // A row in steps, for those whose first pass is split over threads. `first` computes the maxima
  // of buckets [begin, end), begin a multiple of kMinBucket, and returns false when the bits are
  // not in the order of the values: then only kKeyed will do. Integers have but kKeyed, whatever
  // `pass` is.
  bool (*first)(const RowTask& task, int64_t begin, int64_t end, FirstPass pass, uint8_t* maxima);
  // What suits a row whose maxima are those of kPositive.
  FirstPass (*suited)(const RowTask& task, uint8_t* maxima);
  void (*finish)(const RowTask& task, FirstPass pass, uint8_t* maxima, uint8_t* scratch);

  int64_t target;  // Highway's HWY_TARGET, which these were compiled for
};

const TopKKernels& Kernels(DType dtype);

const TopKKernels& F32Kernels();
const TopKKernels& HalfKernels();  // float16 and bfloat16
const TopKKernels& F64Kernels();
const TopKKernels& Int8Kernels();  // signed and unsigned, as all below
const TopKKernels& Int16Kernels();
const TopKKernels& Int32Kernels();
const TopKKernels& Int64Kernels();

void RunLaneSort(const RowTask& task, const LaneOptions& options, uint8_t* scratch);

}  // namespace riffle::topk
