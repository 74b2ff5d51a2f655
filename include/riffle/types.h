// Plain views over the caller's memory. Nothing here owns, allocates or checks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace riffle {

// Element types of inputs. f16 is IEEE binary16, bf16 the upper half of an f32.
enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t SizeOf(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

constexpr const char* Name(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

// A read-only matrix [rows, cols] whose columns are contiguous.
struct MatrixView {
  const void* data = nullptr;  // element (0, 0); any alignment
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements from a row to the next; zero and negative are legal
};

// A matrix [rows, cols] that the library writes. Rows may be interleaved with other data but must
// not share bytes with each other or with an input.
template <typename T>
struct OutView {
  T* data = nullptr;
  int64_t row_stride = 0;  // elements
};

}  // namespace riffle
