// How rows of keys and values are coded, and what follows from it.
#pragma once

#include <cstdint>

#include "riffle/attention.h"
#include "riffle/types.h"

namespace riffle::attention {

// Elements of a dtype, or blocks of a KvFormat.
enum class RowCode : uint8_t {
  kF32,
  kF16,
  kBF16,
  kE4M3,
  kE5M2,
  kI8,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIQ4NL,
};

inline constexpr int kBlockElements = 32;  // of a block format

// Pre: `dtype` and `format` are ones that attention reads (CheckPool).
constexpr RowCode RowCodeOf(DType dtype, KvFormat format) {
  if (format != KvFormat::kPlain) {
    return static_cast<RowCode>(static_cast<int>(RowCode::kQ8_0) + static_cast<int>(format) - 1);
  }
  switch (dtype) {
    case DType::kF16:
      return RowCode::kF16;
    case DType::kBF16:
      return RowCode::kBF16;
    case DType::kE4M3:
      return RowCode::kE4M3;
    case DType::kE5M2:
      return RowCode::kE5M2;
    case DType::kI8:
      return RowCode::kI8;
    default:
      return RowCode::kF32;
  }
}

constexpr bool IsBlocks(RowCode code) { return code >= RowCode::kQ8_0; }

// Whether an element of a block is scale * code + offset instead of scale * code.
constexpr bool HasOffsets(RowCode code) { return code == RowCode::kQ4_1 || code == RowCode::kQ5_1; }

// Whether every element before scaling is exact in bf16. Formats with offsets have no such
// elements, since an offset is added after scaling.
constexpr bool ExactInBF16(RowCode code) {
  return code != RowCode::kF32 && code != RowCode::kF16 && !HasOffsets(code);
}

// Whether an element before scaling may be NaN or infinite.
constexpr bool HasNonFinite(RowCode code) { return code <= RowCode::kE5M2; }

}  // namespace riffle::attention
