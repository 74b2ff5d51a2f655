// The kernels of top-k, and the scratch that they need.
#pragma once

#include <cstddef>
#include <cstdint>

#include "topk/topk_args.h"

namespace riffle::topk {

// Bytes of scratch for one call of a kernel, and (MaximaBytes) for the maxima of one row.
size_t BucketMaximaScratch(const RowTask& task);
size_t MaximaBytes(const RowTask& task);
size_t LaneSortScratch(const RowTask& task, const LaneOptions& options);

// What the first pass takes maxima of. The two cheaper ones suit only some rows.
enum class FirstPass : uint8_t {
  // Maxima of the bits as signed integers, which are in the order of the values where these are
  // positive. Suits rows in which k maxima are positive.
  kPositive,
  // Minima of the bits as unsigned integers, as keys; they are in the order of the values where
  // these are negative. Suits rows in which fewer than k buckets have an element with a clear sign
  // bit; the maximum of such a bucket is 1, above all others.
  kNegative,
  kKeyed,  // maxima of keys; suits any row, and is the only pass for integers
};

// The kernels of one dtype. `scratch` has the bytes stated above, aligned to kScratchAlignment.
struct TopKKernels {
  // A whole row on one thread.
  void (*row)(const RowTask& task, uint8_t* scratch);

  // Selects in rows [begin, end) of few columns, `narrow_lanes()` rows at once. `narrow_lanes()` is
  // 0 for dtypes for which there is no such kernel.
  void (*narrow)(const NarrowRows& rows, size_t begin, size_t end, uint8_t* scratch);
  int64_t (*narrow_lanes)();

  // A row in steps, if its first pass is split over threads. `first_pass` computes the maxima of
  // buckets [begin, end), where begin is a multiple of kMinBucket. It returns false when the order
  // of the bits is not that of the values; only a kKeyed pass is then valid. For integers every
  // pass is kKeyed, whatever `pass` is.
  bool (*first_pass)(const RowTask& task, int64_t begin, int64_t end, FirstPass pass,
                     uint8_t* maxima);
  // Chooses the first pass of a row from the maxima that a kPositive pass has left.
  FirstPass (*choose_first_pass)(const RowTask& task, uint8_t* maxima);
  void (*finish)(const RowTask& task, FirstPass pass, uint8_t* maxima, uint8_t* scratch);

  int64_t target;  // the HWY_TARGET of Highway for which these were compiled
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
