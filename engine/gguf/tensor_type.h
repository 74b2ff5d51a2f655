// The element types of GGUF's tensors. Numbers, names and block sizes: ggml's ggml.h,
// ggml-common.h.
#pragma once

#include <cstdint>
#include <string>

namespace riffle::engine {

// The numbers are ggml's. A file may contain tensors of types that are not listed; its other
// tensors can be used.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,   // 32 values: f16 scale, 16 bytes of nibbles
  kQ4_1 = 3,   // 32 values: f16 scale, f16 minimum, 16 bytes of nibbles
  kQ5_0 = 6,   // 32 values: f16 scale, 4 bytes of high bits, 16 bytes of low nibbles
  kQ5_1 = 7,   // 32 values: f16 scale, f16 minimum, 4 bytes of high bits, 16 of low nibbles
  kQ8_0 = 8,   // 32 values: f16 scale, 32 int8
  kQ2_K = 10,  // 256 values: 16 bytes of 4-bit scales and minima, 64 of pairs of bits, f16, f16
  kQ3_K = 11,  // 256 values: 32 bytes of high bits, 64 of low pairs, 12 of 6-bit scales, f16 scale
  kQ4_K = 12,  // 256 values: f16 scale, f16 minimum, 12 bytes of 6-bit scales, 128 of nibbles
  kQ5_K = 13,  // 256 values: as Q4_K, with 32 bytes of high bits before the nibbles
  kQ6_K = 14,  // 256 values: 128 bytes of low nibbles, 64 of high bits, 16 int8 scales, f16 scale
  kIQ4_NL = 20,  // 32 values: f16 scale, 16 bytes of nibbles, indices of 16 integers
  kBF16 = 30,
};

// The contents of a block of a type; {0, 0} for a type that is not listed above.
struct BlockSize {
  int64_t values;
  int64_t bytes;
};
BlockSize BlockSizeOf(TensorType type);
// "Q4_K"; for a type that is not listed above, ggml's name for it, or "number 99".
std::string NameOf(TensorType type);
// The names of all types that are listed above: "F32, F16, ...".
std::string TensorTypeNames();

}  // namespace riffle::engine
