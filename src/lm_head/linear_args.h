// What the doors of the linear layer hand to the kernels: checked, planned, and the same for every
// SIMD target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/order.h"
#include "riffle/linear_topk.h"

namespace riffle::lm_head {

inline constexpr int kTile = 64;   // columns of y (rows of W) that are computed together
inline constexpr int kSpan = 256;  // inputs summed in one chain; a multiple of kQ8Block
// Inputs laid out at a time; x and W are zeros up to the next one.
inline constexpr int kChunk = 32;

inline constexpr uint32_t kCanonicalNaN = 0x7fc00000u;

// Rows of x that go through W together, laid out as words: [spans][laid_out][kSpan / per word]. A
// word is an f32, or two bf16, the lower input in the lower half.
struct LinearArgs {
  const void* x = nullptr;  // of the first row
  int64_t rows = 0;
  int64_t laid_out = 0;  // rows; as many as `rows`, or more
  int64_t d = 0;
  bool words_of_bf16 = false;

  const uint8_t* weight = nullptr;
  WeightFormat format = WeightFormat::kF32;
  bool transposed = false;    // inputs, not outputs, are `stride` apart
  int64_t weight_stride = 0;  // bytes from one row (transposed: column) of W to the next
  int64_t vocab = 0;
  BiasView bias;

  int64_t spans() const { return (d + kSpan - 1) / kSpan; }
  int span_words() const { return words_of_bf16 ? kSpan / 2 : kSpan; }
};

inline float BiasAt(const BiasView& bias, int64_t column) {
  const size_t element = SizeOf(bias.dtype);
  const auto* at = static_cast<const uint8_t*>(bias.data) + static_cast<size_t>(column) * element;
  if (element == 4) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return core::ToFloat(bits, bias.dtype);
}

// Row `row` of x, or the one that `order` names, into its words. `to_bf16` rounds even where words
// are f32.
struct LayOutX {
  const uint8_t* x = nullptr;
  const int32_t* order = nullptr;  // [rows]; null: as they come
  DType dtype = DType::kF32;
  int64_t row_stride = 0;  // bytes
  int64_t rows = 0;
  int64_t d = 0;
  bool to_bf16 = false;
  bool words_of_bf16 = false;
  void* words = nullptr;
};

// The best logits of a row so far, in ascending order of column.
struct CandidateList {
  int32_t* keys;     // [capacity + kSlack]
  int32_t* columns;  // likewise
  int64_t count;
};

}  // namespace riffle::lm_head
