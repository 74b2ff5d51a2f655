// The kernels that write index keys and transform rows.
#pragma once

#include <cstdint>

#include "riffle/types.h"

namespace riffle::sparse {

inline constexpr int64_t kMaxHadamard = 32768;

struct IndexRow {
  const uint8_t* from = nullptr;  // [dim] of from_dtype
  DType from_dtype = DType::kF32;
  uint8_t* to = nullptr;  // [dim] of to_dtype
  DType to_dtype = DType::kF32;
  bool mxfp4 = false;      // `to` is [dim / 2], `scale` four e8m0
  float* scale = nullptr;  // of e4m3 and i8, any alignment
  int dim = 0;
  bool hadamard = false;
  bool power_of_two_scale = true;
};

struct IndexKeysKernels {
  // Pre: dim is a multiple of 16, at most kMaxIndexDim.
  void (*write)(const IndexRow& row);
  // `scratch` has `cols` floats; from and to may be the same.
  void (*hadamard)(DType dtype, const uint8_t* from, uint8_t* to, int64_t cols, float* scratch);
};
const IndexKeysKernels& GetIndexKeysKernels();

}  // namespace riffle::sparse
