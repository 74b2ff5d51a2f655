// Products with quantised weights: y = x W^T, nearly as exact as in f32, at the speed of int8.
//
// Weights keep the integers and scales of the file; nothing is rounded. An activation is rounded to
// 16-bit fixed point in blocks of 32: x = step * q, where step is a power of two (the error is at
// most 2^-15 of the block's largest magnitude). q is held as two planes of bytes, q = 256 * high +
// low - 32768. A block's product is then two sums of int8 products, exact in int32 in any order;
// the blocks' results are scaled and added in f32 in the order of blocks. So a row's result does
// not depend on other rows, on threads or on tiles. (int8 activations, as in llama.cpp, or bf16
// ones move logits by more than 0.05: README.md.)
#pragma once

#include <hwy/aligned_allocator.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "engine/arch/model_spec.h"
#include "engine/gguf/gguf.h"
#include "riffle/runtime.h"

namespace riffle::engine {

constexpr int64_t kPanel = 32;    // outputs that are stored side by side
constexpr int64_t kBlock = 32;    // inputs that share a scale
constexpr int64_t kRowTile = 64;  // rows of activations that are stored together

// The memory layout of a block of 32 inputs and 32 outputs of a weight: codes, then scales. Four
// inputs of an output are neighbours; quarter q of a block is the inputs 4 q to 4 q + 3.
//   kQ8     [8 quarters][32 outputs][4] i8
//   kQ2     [2][32][4] u8: bits 2 i and 2 i + 1 of a byte in half h are a code of quarter 4 h + i
//   others  (of code + Bias) [4][32][4] u8: low nibbles of quarters q and q + 4; then
//     kQ5, kQ5Minimum  [32][4] u8: bit q is the fifth bit of a code of quarter q
//     kQ6              [2][32][4] u8: the upper two bits, in the order of kQ2
// Scales follow. Packings with a minimum have two kinds; with halves, one for every 16 inputs:
//   all                   d [32] f16
//   minimum               dmin [32] f16
//   minimum or halves     factor [1 or 2][32] u8, kQ6's i8
//   minimum               minimum_factor [1 or 2][32] u8
// So a token reads about as many bytes as the file has, 4.5 to 8.5 bits a weight. Weights without
// blocks are stored as [32 inputs][32 outputs] of their own elements.
enum class Packing : uint8_t {
  kQ2,         // Q2_K: halves, minimum
  kQ4,         // Q4_0
  kQ4Minimum,  // Q4_1, Q4_K
  kQ5,         // Q5_0
  kQ5Minimum,  // Q5_1, Q5_K
  kQ6,         // Q3_K, Q6_K: halves
  kQ8,         // Q8_0, IQ4_NL
  kF32,
  kF16,
  kBF16,
};
constexpr bool IsDense(Packing packing) { return packing >= Packing::kF32; }
constexpr bool HasMinimum(Packing packing) {
  return packing == Packing::kQ2 || packing == Packing::kQ4Minimum ||
         packing == Packing::kQ5Minimum;
}
constexpr bool HasHalves(Packing packing) {
  return packing == Packing::kQ2 || packing == Packing::kQ6;
}
constexpr int Bias(Packing packing) {
  return packing == Packing::kQ4   ? 8
         : packing == Packing::kQ5 ? 16
         : packing == Packing::kQ6 ? 32
                                   : 0;
}
constexpr int64_t CodeBytes(Packing packing) {
  switch (packing) {
    case Packing::kQ2:
      return 256;
    case Packing::kQ4:
    case Packing::kQ4Minimum:
      return 512;
    case Packing::kQ5:
    case Packing::kQ5Minimum:
      return 640;
    case Packing::kQ6:
      return 768;
    case Packing::kQ8:
      return 1024;
    case Packing::kF32:
      return 4096;
    case Packing::kF16:
    case Packing::kBF16:
      return 2048;
  }
  return 0;
}
// The offset of the factors in a block, after its codes and f16 scales.
constexpr int64_t FactorsAt(Packing packing) {
  return CodeBytes(packing) + (HasMinimum(packing) ? 4 : 2) * kPanel;
}
constexpr int64_t BlockBytes(Packing packing) {  // a multiple of 64
  if (IsDense(packing)) {
    return CodeBytes(packing);
  }
  const int64_t factors = (HasHalves(packing)    ? 2
                           : HasMinimum(packing) ? 1
                                                 : 0) *
                          (HasMinimum(packing) ? 2 : 1);
  return FactorsAt(packing) + factors * kPanel;
}

// A weight [outputs, inputs] as panels of 32 outputs (the last one filled up with zeros) of blocks.
struct Matrix {
  int64_t outputs = 0;
  int64_t inputs = 0;
  Packing packing = Packing::kQ8;
  hwy::AlignedFreeUniquePtr<uint8_t[]> data;

  int64_t blocks() const { return inputs / kBlock; }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return blocks() * BlockBytes(packing); }
  int64_t bytes() const { return panels() * panel_bytes(); }
};

// Which row of a file's tensor each row in memory comes from.
struct RowOrder {
  // 0: rows keep their order. Otherwise row i of every `head` rows is the file's row 2 i, and row i
  // + head / 2 the file's 2 i + 1: the two elements of a RoPE pair are then half a head apart, as
  // the kernels need them.
  int64_t head = 0;

  int64_t Source(int64_t row) const {
    if (head == 0) {
      return row;
    }
    const int64_t i = row % head;
    return row - i + (i < head / 2 ? 2 * i : 2 * i - head + 1);
  }
};

// Repacks a tensor of any type. Pre: its rows are a multiple of 32. Throws Error(kOutOfMemory).
Matrix Pack(const GgufFile& file, const Tensor& tensor, RowOrder order, ThreadPool* pool);

constexpr int kZeroPoint = 32768;  // of the planes: high = 128 and low = 0 encode 0

// Rows of rounded activations, in tiles of 64 rows that fit in a core's L2 cache.
class Activations {
 public:
  // Makes room for `rows` rows of `inputs` values.
  void Resize(int64_t rows, int64_t inputs);
  int64_t rows() const { return rows_; }
  int64_t inputs() const { return inputs_; }
  int64_t blocks() const { return inputs_ / kBlock; }

  int64_t tiles() const { return (rows_ + kRowTile - 1) / kRowTile; }
  // Where block `block` of row `row` is; the next rows of the tile follow it.
  int64_t At(int64_t block, int64_t row) const {
    const int64_t first = row / kRowTile * kRowTile;
    return first * blocks() + block * std::min(kRowTile, rows_ - first) + row - first;
  }

  // The data at that place:
  uint8_t* planes() { return planes_.get(); }      // [64]: 32 high, 32 low
  float* step() { return step_.get(); }            // a power of two; NaN if a value is not finite
  float* sum() { return sum_.get(); }              // of the 32 rounded values
  float* first_sum() { return first_sum_.get(); }  // of the first 16
  const uint8_t* planes() const { return planes_.get(); }
  const float* step() const { return step_.get(); }
  const float* sum() const { return sum_.get(); }
  const float* first_sum() const { return first_sum_.get(); }

 private:
  int64_t rows_ = 0;
  int64_t inputs_ = 0;
  size_t capacity_ = 0;  // blocks
  hwy::AlignedFreeUniquePtr<uint8_t[]> planes_;
  hwy::AlignedFreeUniquePtr<float[]> step_;
  hwy::AlignedFreeUniquePtr<float[]> sum_;
  hwy::AlignedFreeUniquePtr<float[]> first_sum_;
};

// A weight and where x W^T goes: y[row * stride + output], outputs rounded up to whole panels.
struct Product {
  const Matrix* weight = nullptr;
  float* y = nullptr;
  int64_t stride = 0;
};

// Computes several products of the same x in one parallel loop.
void Multiply(const Activations& x, std::span<const Product> products, ThreadPool* pool);

// out = activation(x gate^T) * (x up^T), rounded: the input of the down projection of a gated
// feed-forward network. Pre: gate and up have the same shape, whose outputs are a multiple of 32;
// out has been resized to it.
void MultiplyGated(const Activations& x, const Matrix& gate, const Matrix& up,
                   Activation activation, Activations& out, ThreadPool* pool);

}  // namespace riffle::engine
