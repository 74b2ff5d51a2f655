// The kernels that write one token's rows: the same bits on every SIMD target.
#pragma once

#include <cstdint>

#include "riffle/attention.h"
#include "riffle/types.h"

namespace riffle::kv_cache {

// Bytes of a cache line.
inline constexpr int64_t kLine = 64;

// What all tokens of a call have in common, in keys or in values. Strides are in bytes.
struct WriteArgs {
  int64_t heads = 0;
  int64_t head_dim = 0;  // elements
  int64_t in_head = 0;
  int64_t out_head = 0;
  DType scale_dtype = DType::kF32;
  int64_t scale_head = 0;
  int64_t scale_group = 0;  // from a group's scale to the next group's
  int64_t group = 0;        // elements that share a scale; at least 1, head_dim: the whole row
  float divisor = 1.0f;
  bool streams = false;  // streaming stores; pre: elements are copied, in whole cache lines
};

// Where a token's rows begin, at any address. Pre: `in` and `out` share no byte.
struct TokenRows {
  const uint8_t* in = nullptr;
  uint8_t* out = nullptr;
  const uint8_t* scales = nullptr;     // given ones; null: 1
  uint8_t* computed_scales = nullptr;  // not null: scales are made and stored here
};

// Writes args.heads rows of args.head_dim elements.
using WriteToken = void (*)(const WriteArgs& args, const TokenRows& token);

inline constexpr int kNumInDTypes = 3;                        // f32, f16, bf16
inline constexpr int kNumOutFormats = 6 + kNumKvFormats - 1;  // elements, then blocks

struct WritersFrom {
  WriteToken to[kNumOutFormats];  // by OutFormat
};
struct WriteKernels {
  WritersFrom from[kNumInDTypes];  // by dtype
};

// The kernels for the SIMD target in use. Pre: the call has called EnsureTarget().
const WriteKernels& GetWriteKernels();

// The index in WriteKernels of a pool's elements, whose format WriteKv must support.
constexpr int OutFormat(DType dtype, KvFormat format) {
  if (format != KvFormat::kPlain) {
    return 5 + static_cast<int>(format);
  }
  return dtype <= DType::kBF16   ? static_cast<int>(dtype)
         : dtype == DType::kE4M3 ? 3
         : dtype == DType::kE5M2 ? 4
                                 : 5;
}

}  // namespace riffle::kv_cache
