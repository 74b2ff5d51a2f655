// The product of one k block of x with one tile of W: the arguments of its kernels, and which
// kernels serve a weight format.
#pragma once

#include <hwy/base.h>

#include <cstddef>
#include <cstdint>

#include "riffle/linear_topk.h"

namespace riffle::lm_head {

inline constexpr int kTile = 64;        // columns of y (rows of W) that are computed together
inline constexpr int kKBlock = 256;     // inputs that one chain of additions sums
inline constexpr int kInputGroup = 32;  // inputs are packed in groups, the last filled with zeros
inline constexpr int kSmallM = 4;       // at most this many rows of x multiply W in place
static_assert(kKBlock % kInputGroup == 0 && kInputGroup == kQ8Block);

// A k block of a tile of W: up to kTile columns of y, up to kKBlock inputs.
struct WeightTile {
  // Addresses of columns whose inputs are contiguous. In a tile of fewer columns the last one is
  // repeated. Unused if transposed.
  const uint8_t* column[kTile];
  int64_t offset;        // bytes from the start of a column to this k block
  int64_t column_bytes;  // of a whole column
  int64_t next_tile;     // bytes from a column to the same column of the next tile
  // Transposed: the address of this k block's first input in the first column, and the bytes from
  // an input to the next.
  const uint8_t* transposed_data;
  int64_t transposed_stride;

  int columns;     // 1..kTile
  int inputs;      // 1..kKBlock
  uint8_t* tails;  // scratch [kTile][kInputGroup] elements
  float* scales;   // scratch, Q8_0: [inputs / kQ8Block][kTile]

  // What to prefetch while byte `at` of this k block is read, as an offset from the start of a
  // column: kAhead bytes further on, and past the column's end in the same column of the next tile.
  static constexpr int64_t kAhead = 512;
  HWY_INLINE int64_t Prefetched(int64_t at) const {
    const int64_t ahead = offset + at + kAhead;
    return ahead < column_bytes ? ahead : ahead - column_bytes + next_tile;
  }
  int padded() const { return (inputs + kInputGroup - 1) / kInputGroup * kInputGroup; }
};

// Rows of x in a k block, and the sums that their products are added to.
struct KBlockProduct {
  const void* x;      // [rows][kKBlock] inputs as packed operands
  const uint32_t* w;  // packed operands (pack_weights-inl.h); in place: unused
  float* sums;        // [rows][kTile]
  int rows;
};

// How weights become operands of products: by their format, and by whether an operand is one f32 or
// a pair of bf16 (from bf16 or Q8_0 weights, on targets with bf16 dot products).
enum class WeightSource : uint8_t { kF32, kF16, kBF16, kQ8_0, kBF16Pairs, kQ8_0Pairs };
inline constexpr int kWeightSources = 6;

// The kernels for one weight source, on the target in use.
struct ProductFunctions {
  // Reads the scales of the tile's blocks into tile.scales. Null unless Q8_0.
  void (*load_scales)(const WeightTile& tile) = nullptr;
  // Pack a tile of W for `multiply_packed`: `pack` if its inputs are contiguous, `pack_transposed`
  // (null for Q8_0) if its columns are.
  void (*pack)(const WeightTile& tile, uint32_t* operands) = nullptr;
  void (*pack_transposed)(const WeightTile& tile, uint32_t* operands) = nullptr;
  // `prefetch`: also fetches what follows this k block in each column.
  void (*multiply_packed)(const KBlockProduct& product, const WeightTile& tile,
                          bool prefetch) = nullptr;
  // Reads W in place. Takes up to kSmallM rows and only whole groups of inputs.
  void (*multiply_inplace)(const KBlockProduct& product, const WeightTile& tile) = nullptr;
};
// Pre: HasBF16Pairs() if `bf16_pairs`.
ProductFunctions ChooseProduct(WeightFormat format, bool bf16_pairs);

// Whether the target in use multiplies pairs of bf16.
bool HasBF16Pairs();

}  // namespace riffle::lm_head
