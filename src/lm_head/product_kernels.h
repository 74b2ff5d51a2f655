// The kernels of products, in three translation units so that none takes minutes to compile. The
// arrays are indexed by WeightSource; entries for pairs are null on targets without them.
#pragma once

#include <array>
#include <cstdint>

#include "lm_head/product.h"

namespace riffle::lm_head {

// Rows of x to pack.
struct PackXTask {
  const uint8_t* x = nullptr;
  const int32_t* row_list = nullptr;  // [rows] which rows of x; null: 0, 1, 2 ...
  DType dtype = DType::kF32;
  int64_t row_stride = 0;  // bytes
  int64_t rows = 0;
  int64_t d = 0;
  bool round_to_bf16 = false;  // rounds x to bf16 even if its operands are f32
  bool bf16_pairs = false;
  void* operands = nullptr;  // [k blocks][rows][kKBlock] inputs
};

struct PackKernels {
  bool bf16_pairs;
  void (*x)(const PackXTask& task, int64_t row);
  void (*load_scales)(const WeightTile& tile);
  using Pack = void (*)(const WeightTile& tile, uint32_t* operands);
  std::array<Pack, kWeightSources> weights;
  std::array<Pack, kWeightSources> transposed;
};
const PackKernels& GetPackKernels();

struct PackedProductKernels {
  using Multiply = void (*)(const KBlockProduct& product, const WeightTile& tile, bool prefetch);
  std::array<Multiply, kWeightSources> multiply;
};
const PackedProductKernels& GetPackedProductKernels();

struct InplaceProductKernels {
  using Multiply = void (*)(const KBlockProduct& product, const WeightTile& tile);
  std::array<Multiply, kWeightSources> multiply;
};
const InplaceProductKernels& GetInplaceProductKernels();

}  // namespace riffle::lm_head
