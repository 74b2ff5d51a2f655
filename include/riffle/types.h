// Plain views over the caller's memory. Nothing here owns, allocates or checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace riffle {

// Element types. f16 is IEEE binary16, bf16 the upper half of an f32; e4m3 (finite only, `e4m3fn`)
// and e5m2 are the 8-bit floats of OCP; e8m0 is a power of two, 2^(code - 127), as used for scales.
// Selection supports the dtypes before e4m3; products and attention support those that their
// headers name.
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF64,
  kI8,
  kU8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kE4M3,
  kE5M2,
  kE8M0,
};
inline constexpr int kNumDTypes = 15;

constexpr size_t SizeOf(DType dtype) {
  constexpr uint8_t kBytes[kNumDTypes] = {4, 2, 2, 8, 1, 1, 2, 2, 4, 4, 8, 8, 1, 1, 1};
  return kBytes[static_cast<int>(dtype)];
}

constexpr const char* Name(DType dtype) {
  constexpr const char* kNames[kNumDTypes] = {
      "float32", "float16", "bfloat16",      "float64",     "int8",
      "uint8",   "int16",   "uint16",        "int32",       "uint32",
      "int64",   "uint64",  "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"};
  return static_cast<int>(dtype) < kNumDTypes ? kNames[static_cast<int>(dtype)]
                                              : "an unknown dtype";
}

// The dtype of float, double or an integer type.
template <typename T>
constexpr DType DTypeOf() {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "no dtype has elements of this type");
  if constexpr (std::is_floating_point_v<T>) {
    return sizeof(T) == 4 ? DType::kF32 : DType::kF64;
  } else {
    constexpr DType kSigned = sizeof(T) == 1   ? DType::kI8
                              : sizeof(T) == 2 ? DType::kI16
                              : sizeof(T) == 4 ? DType::kI32
                                               : DType::kI64;
    return static_cast<DType>(static_cast<int>(kSigned) + (std::is_unsigned_v<T> ? 1 : 0));
  }
}

constexpr bool IsFloat(DType dtype) { return dtype <= DType::kF64; }
constexpr bool IsUnsigned(DType dtype) {
  return dtype == DType::kU8 || dtype == DType::kU16 || dtype == DType::kU32 ||
         dtype == DType::kU64;
}

// A read-only matrix [rows, cols] whose columns are contiguous.
struct MatrixView {
  const void* data = nullptr;  // element (0, 0); any alignment
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements from a row to the next; zero and negative are legal
};

// A matrix of contiguous rows. `View(data, rows, cols)` deduces the dtype of C++'s own types; for
// f16 and bf16, which C++ does not have, name it.
constexpr MatrixView View(const void* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols};
}
template <typename T>
constexpr MatrixView View(const T* data, int64_t rows, int64_t cols) {
  return View(data, DTypeOf<T>(), rows, cols);
}

// Index types that callers may choose between.
enum class IndexType : uint8_t { kInt32, kInt64 };

constexpr size_t SizeOf(IndexType type) { return type == IndexType::kInt32 ? 4 : 8; }
constexpr const char* Name(IndexType type) { return type == IndexType::kInt32 ? "int32" : "int64"; }

// A matrix [rows, cols] that the library writes. Rows may be interleaved with other data but must
// not share bytes with each other or with an input.
template <typename T>
struct OutView {
  T* data = nullptr;
  int64_t row_stride = 0;  // elements
};

}  // namespace riffle
