// The kernel that writes coded rows.
#pragma once

#include <cstdint>

#include "riffle/sparse_attention.h"

namespace riffle::sparse {

struct CodedRow {
  const uint8_t* from = nullptr;  // [576] of from_dtype; of kMla584 [512]
  DType from_dtype = DType::kF32;
  SparseRowFormat format = SparseRowFormat::kMla656;
  bool power_of_two_scales = true;
  uint8_t* to = nullptr;      // any alignment
  uint8_t* scales = nullptr;  // of kMla584: 8 bytes
};

struct WriteRowsKernels {
  void (*write)(const CodedRow& row);
};
const WriteRowsKernels& GetWriteRowsKernels();

}  // namespace riffle::sparse
