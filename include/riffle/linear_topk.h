// A linear layer, y = x Wt + b, and its fusion with top-k: the LM head of a language model.
//
// Arithmetic. Every y[r, v] is one sum over d, whose additions have a fixed order. The order
// depends on d, the element types and the SIMD target, but not on the number of rows, the threads,
// the layout of the weights or the place in the matrix. So a row's result has the same bits by
// itself and among others, by Linear and by LinearTopK. Dense weights: each k block of 256 inputs
// is a chain of fused multiply-adds, and the results of the blocks are added in turn. Q8_0: each
// block of 32 is a chain, and the results, multiplied by their scales, are added in turn.
// Accumulation is in f32 throughout.
//   bf16 x with bf16 or Q8_0 weights   bf16 dot products (VDPBF16PS, which treats denormals as
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

// The memory format of a linear layer's weights. kQ8_0 is that of GGUF: blocks of 32 neighbours
// along d, 34 bytes each, with an f16 scale and 32 int8; a weight is scale * int8.
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
// Strides are in elements, for Q8_0 in blocks; zero and negative ones are legal. One of the two
// must be 1, unless its axis has at most one element: col_stride = 1 for a [vocab, d] matrix,
// row_stride = 1 for a [d, vocab] matrix. Q8_0 needs col_stride = 1 and cols a multiple of 32.
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
  // Rounds an f32 or f16 x to bf16 first (to nearest, ties to even): results have the bits of a
  // call with that bf16 x. For many rows, bf16 dot products are about twice as fast as f32 ones. No
  // effect unless the weights are bf16 or Q8_0.
  bool round_x = false;
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// y = x Wt + b.
//   x       [rows, d]  f32|f16|bf16; rows and d may be 0
//   weight  [vocab, d], 1 <= vocab < 2^31
//   y       [rows, vocab] f32
// Throws Error: kBadShape, kBadDType, kOverlap; kOutOfMemory. Nothing is written on error.
// Allocates nothing once the pool's scratch has grown to the shape. All threads together read W
// once for every 256 rows, in memory order.
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

// The k best of each row of x Wt + b, in the order of riffle/topk.h: values and indices have the
// bits that TopK gives on the result of Linear. The logits are never stored as a whole: each tile
// of the vocabulary is multiplied, compared with a bound that k logits are known to reach, and
// discarded. With Q8_0 weights, k up to vocab / 64 and int8 dot products on the target, a prefilter
// first rounds x to int8 (up to three rows: to two int8, 15 bits). A proven bound on its error
// tells which columns may be among the k best, and only these are multiplied as stated above;
// round_x then gains nothing. A row with too many such columns, for example because many logits are
// equal, falls back: all its columns are multiplied, after the time spent on the prefilter.
// docs/prefilter.md has the proof.
//   out  values [rows, k] f32, indices [rows, k]
// Throws Error: kBadK unless 1 <= k <= vocab, kBadOption for an unknown index_type, and as Linear.
RIFFLE_API void LinearTopK(const MatrixView& x, const WeightView& weight, int64_t k,
                           const LinearTopKOut& out, const LinearOptions& options = {});

}  // namespace riffle
