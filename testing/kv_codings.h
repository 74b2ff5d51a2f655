// The codings that tests of attention and of the KV cache loop over.
#pragma once

#include <vector>

#include "testing/kv_codes.h"

namespace riffle::test {

// Every dtype and format, every scaling, and every dtype of scales at least once.
inline std::vector<KvCoding> AllKvCodings() {
  std::vector<KvCoding> codings = {
      {.dtype = DType::kF32},
      {.dtype = DType::kF16},
      {.dtype = DType::kBF16},
      {.dtype = DType::kE4M3},
      {.dtype = DType::kE5M2},
      {.dtype = DType::kE4M3, .scaling = Scaling::kTensor, .divisor = 3.0f},
      {.dtype = DType::kE5M2, .scaling = Scaling::kHead, .scale_dtype = DType::kF16},
      {.dtype = DType::kE4M3, .scaling = Scaling::kRow, .scale_dtype = DType::kBF16},
      {.dtype = DType::kI8, .scaling = Scaling::kTensor},
      {.dtype = DType::kI8, .scaling = Scaling::kRow, .scale_dtype = DType::kF16},
      {.dtype = DType::kI8, .scaling = Scaling::kGroups, .group = 32},
      {.dtype = DType::kE5M2,
       .scaling = Scaling::kGroups,
       .group = 64,
       .scale_dtype = DType::kBF16},
      {.dtype = DType::kE4M3,
       .scaling = Scaling::kGroups,
       .group = 32,
       .scale_dtype = DType::kE8M0}};
  for (const KvFormat format : {KvFormat::kQ8_0, KvFormat::kQ4_0, KvFormat::kQ4_1, KvFormat::kQ5_0,
                                KvFormat::kQ5_1, KvFormat::kIQ4NL}) {
    codings.push_back({.dtype = DType::kU8, .format = format});
  }
  return codings;
}

}  // namespace riffle::test
