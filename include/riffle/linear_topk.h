// A linear layer, y = x Wt + b, and its fusion with top-k: the LM head of a language model.
//
// Arithmetic. Every y[r, v] is one sum in a fixed order of additions over d that depends on d, the
// element types and the SIMD target alone: not on the number of rows, on threads, on the layout of
// the weights or on the place in the matrix. So a row's result is bitwise the same by itself and
// among others, through Linear and through LinearTopK. Dense weights: chains of fused
// multiply-adds over k blocks of 256 inputs, whose results are added in turn. Q8_0: chains over
// blocks of 32, multiplied by the block's scale and added in turn. f32 accumulation throughout.
//   bf16 x with bf16 or Q8_0 weights   bf16 dot products (VDPBF16PS, which takes denormals for
//                                      zeros) on targets that have them; int8 is exact in bf16
//   everything else                    f32; bf16, f16 and int8 convert exactly. An f32 x is not
//                                      rounded, unless LinearOptions::round_x asks for it.
// Results are canonical: a zero is +0, a NaN is the quiet NaN 0x7fc00000.
#pragma once

#include <cstdint>

#include "riffle/export.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// How the weights of a linear layer lie in memory. kQ8_0 is GGUF's: blocks of 32 neighbours along
// d, 34 bytes each, an f16 scale and 32 int8; the weight is scale * int8.
enum class WeightFormat : uint8_t { kF32, kF16, kBF16, kQ8_0 };

constexpr const char* Name(WeightFormat format) {
  return format == WeightFormat::kF32    ? "float32"
         : format == WeightFormat::kF16  ? "float16"
         : format == WeightFormat::kBF16 ? "bfloat16"
                                         : "Q8_0";
}

constexpr int64_t kQ8Block = 32;       // weights
constexpr int64_t kQ8BlockBytes = 34;  // little-endian f16 scale, 32 int8

// W [rows, cols]: one row for each output (a token of the vocabulary), one column for each input.
// Strides are in elements, of Q8_0 in blocks; zero and negative ones are legal. One of the two must
// be 1 (unless its axis has at most one element): col_stride = 1 for a [vocab, d] matrix,
// row_stride = 1 for a [d, vocab] matrix. Q8_0: col_stride = 1 and cols is a multiple of 32.
struct WeightView {
  const void* data = nullptr;  // element (0, 0), or its block; any alignment
  WeightFormat format = WeightFormat::kF32;
  int64_t rows = 0;  // vocab
  int64_t cols = 0;  // d
  int64_t row_stride = 0;
  int64_t col_stride = 1;
};

// b [size], contiguous; data = nullptr: no bias.
struct BiasView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t size = 0;  // vocab
};

struct LinearOptions {
  BiasView bias = {};  // added last
  // Rounds an f32 or f16 x to bf16 first, to the nearest, ties to even: the bits are those of a
  // call with that bf16 x. bf16 dot products are about twice as fast as f32's for many rows.
  // Without effect when the weights are neither bf16 nor Q8_0.
  bool round_x = false;
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// y = x Wt + b.
//   x       [rows, d]  f32|f16|bf16; rows and d may be 0
//   weight  [vocab, d], 1 <= vocab < 2^31
//   y       [rows, vocab] f32
// Throws Error: kBadShape, kBadDType, kOverlap; kOutOfMemory. Nothing is written on error.
// Allocates nothing once the pool's scratch has grown to the shape. W is read once for every 256
// rows, in the order in which it lies, by all threads.
RIFFLE_API void Linear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
                       const LinearOptions& options = {});

// Outputs [rows, k], of any alignment; each has its own row stride in elements.
struct LinearTopKOut {
  float* values = nullptr;
  int64_t values_stride = 0;
  void* indices = nullptr;  // int32 or int64
  int64_t indices_stride = 0;
  IndexType index_type = IndexType::kInt32;
};

// The k best of each row of x Wt + b, in the order of riffle/topk.h: values and indices are bit for
// bit those of TopK over the result of Linear. The logits are never stored whole: tiles of the
// vocabulary are multiplied, compared with a bound that k logits are known to reach, and forgotten.
// With Q8_0 weights, k up to vocab / 64 and int8 dot products on the target, a prefilter rounds x
// to int8 first (up to three rows: to two int8, 15 bits), and only the columns that may be among
// the k best, by a proven bound of the error, are multiplied as stated above. Rounding x to bf16
// then gains nothing. A row with too many such columns, as when many logits are equal, falls back:
// all columns are multiplied, on top of the time of the prefilter. docs/prefilter.md has the proof.
//   out  values [rows, k] f32, indices [rows, k]
// Throws Error: kBadK unless 1 <= k <= vocab, kBadOption for an unknown index_type, and as Linear.
RIFFLE_API void LinearTopK(const MatrixView& x, const WeightView& weight, int64_t k,
                           const LinearTopKOut& out, const LinearOptions& options = {});

}  // namespace riffle
