// Products with quantised weights: y = x Wt, nearly as exact as in f32, at the speed of int8.
//
// Weights keep the integers and scales of the file, nothing is rounded. An activation is rounded to
// 16 bits of fixed point in blocks of 32 (at most 2^-16 of the block's largest), held as two int8
// planes, x = step * (256 * high + low). A block's product is then two sums of int8 products, exact
// in int32 in any order; the blocks' results are scaled and added in f32 in the order of the
// blocks. So a row's result does not depend on the other rows, on threads or on tiles. (int8
// activations alone, as llama.cpp has them, or bf16 ones move logits by more than 0.05: README.md.)
#pragma once

#include <hwy/aligned_allocator.h>

#include <cstdint>
#include <span>

#include "examples/gemma3/gguf.h"
#include "riffle/runtime.h"

namespace riffle::gemma3 {

constexpr int64_t kPanel = 16;  // outputs that lie side by side
constexpr int64_t kBlock = 32;  // inputs that share a scale

// What scales a block has for each of the panel's outputs.
enum class Scales : uint8_t {
  kHalf,     // [16] f16: Q8_0, Q5_0
  kTwo,      // [2][16] f32, of 16 inputs each: Q6_K
  kMinimum,  // [2][16] f32: scale and minimum: Q4_K
};
constexpr int64_t ScaleBytes(Scales scales) { return scales == Scales::kHalf ? 32 : 128; }

// A weight [outputs, inputs] as panels of 16 outputs (the last one filled up with zeros). A panel:
//   codes   [blocks][8][16 outputs][4 inputs] u8, weight + 128
//   scales  [blocks] of what `scales` says
struct Matrix {
  int64_t outputs = 0;
  int64_t inputs = 0;
  Scales scales = Scales::kHalf;
  hwy::AlignedFreeUniquePtr<uint8_t[]> data;

  int64_t blocks() const { return inputs / kBlock; }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const {  // a multiple of 64
    return (blocks() * (kPanel * kBlock + ScaleBytes(scales)) + 63) / 64 * 64;
  }
  int64_t bytes() const { return panels() * panel_bytes(); }
};

// Repacks a tensor of one of the types that UnpackRow takes. Throws BadModel for others, and for
// rows that are no multiple of 32.
Matrix Pack(const GgufFile& file, const Tensor& tensor, Pool* pool);

// Rows of activations, rounded.
class Activations {
 public:
  // Room for `rows` rows of `inputs` values.
  void Resize(int64_t rows, int64_t inputs);
  int64_t rows() const { return rows_; }
  int64_t inputs() const { return inputs_; }
  int64_t blocks() const { return inputs_ / kBlock; }

  // Of block b and row r, at b * rows + r:
  int8_t* planes() { return planes_.get(); }  // [64]: 32 high, 32 low
  float* step() { return step_.get(); }
  int32_t* correction() {
    return correction_.get();
  }                                    // [2]: -128 * the sum of the first 16
                                       // integers, and of all 32
  float* sum() { return sum_.get(); }  // step * the sum of all 32 integers
  const int8_t* planes() const { return planes_.get(); }
  const float* step() const { return step_.get(); }
  const int32_t* correction() const { return correction_.get(); }
  const float* sum() const { return sum_.get(); }

 private:
  int64_t rows_ = 0;
  int64_t inputs_ = 0;
  size_t capacity_ = 0;  // blocks
  hwy::AlignedFreeUniquePtr<int8_t[]> planes_;
  hwy::AlignedFreeUniquePtr<float[]> step_;
  hwy::AlignedFreeUniquePtr<int32_t[]> correction_;
  hwy::AlignedFreeUniquePtr<float[]> sum_;
};

// A weight and where x Wt goes: y[row * stride + output], outputs rounded up to whole panels.
struct Product {
  const Matrix* weight = nullptr;
  float* y = nullptr;
  int64_t stride = 0;
};

// Several products of the same x, in one parallel loop.
void Multiply(const Activations& x, std::span<const Product> products, Pool* pool);

}  // namespace riffle::gemma3
