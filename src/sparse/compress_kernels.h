// The kernel of CompressKv.
#pragma once

#include <cstdint>

#include "riffle/compress_kv.h"

namespace riffle::sparse {

inline constexpr int kMaxEntryDim = 1024;

// The matrix kv, or gates, with its stride in bytes.
struct CompressInput {
  const uint8_t* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;
};

struct CompressArgs {
  CompressInput kv, gates;
  int dim = 0;
  int ratio = 1;
  bool overlap = false;
  const float* gate_bias = nullptr;  // or null
  bool norm = true;
  const float* norm_weight = nullptr;  // or null
  float norm_eps = 0;
  RopeTable rope;
  uint8_t* out = nullptr;
  int64_t out_stride = 0;  // bytes
};

// The first token of an entry's window, and its number in its sequence.
struct CompressEntry {
  int64_t token;
  int64_t number;
};

struct CompressKernels {
  // Row `row` of the output. Pre: with overlap and number > 0, a window lies before `token`.
  void (*compress)(const CompressArgs& args, const CompressEntry& entry, int64_t row);
};
const CompressKernels& GetCompressKernels();

}  // namespace riffle::sparse
