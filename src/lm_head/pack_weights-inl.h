// Packs a tile of W into operands that packed_product-inl.h reads in the order of the inputs.
// Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PACK_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PACK_WEIGHTS_INL_H_
#undef RIFFLE_LM_HEAD_PACK_WEIGHTS_INL_H_
#else
#define RIFFLE_LM_HEAD_PACK_WEIGHTS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "lm_head/weight_source-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;
using core::HWY_NAMESPACE::PrefetchAt;

// Packs operands [0, operands) of columns whose inputs are contiguous.
template <class Source>
void PackColumns(const WeightTile& tile, int operands, int panel_operands, uint32_t* out) {
  const LaneU32 d;
  using S = PackStep<Source>;
  for (int column = 0; column < kTile; column += S::kGroups * kLanes) {
    uint32_t* panel = out + column / kPanel * kPanel * panel_operands + column % kPanel;
    for (int operand = 0; operand < operands; operand += S::kStepOperands) {
      VecU32 v[kLanes];
      S::template Load</*kPrefetch=*/false>(tile, column, operand, v);
      for (int i = 0; i < kLanes; ++i) {
        hn::Store(
            v[i], d,
            panel + (operand + i % S::kStepOperands) * kPanel + i / S::kStepOperands * kLanes);
      }
    }
  }
}

// Copies the inputs past the last whole group into tile.tails and fills them up with zeros. Returns
// the copy as a tile of one group.
template <size_t kElement>
HWY_INLINE WeightTile TailOf(const WeightTile& tile) {
  WeightTile tail = tile;
  const int whole = tile.inputs / kInputGroup * kInputGroup;
  const auto bytes = static_cast<size_t>(tile.inputs - whole) * kElement;
  for (int i = 0; i < kTile; ++i) {
    uint8_t* copy = tile.tails + static_cast<size_t>(i) * kInputGroup * kElement;
    const size_t from = static_cast<size_t>(whole) * kElement;
    std::memcpy(copy, tile.column[i] + tile.offset + from, bytes);
    std::memset(copy + bytes, 0, kInputGroup * kElement - bytes);
    tail.column[i] = copy;
  }
  tail.offset = 0;
  tail.inputs = kInputGroup;
  return tail;
}

// Packs a tile whose inputs are contiguous.
template <class Source>
void PackWeights(const WeightTile& tile, uint32_t* operands) {
  HWY_DASSERT(0 < tile.inputs && tile.inputs <= kKBlock);
  HWY_DASSERT(!Source::kQ8 || tile.inputs % kInputGroup == 0);
  constexpr int kPerOperand = Source::Math::kPerOperand;
  const int panel_operands = tile.padded() / kPerOperand;
  const int whole = tile.inputs / kInputGroup * (kInputGroup / kPerOperand);
  PackColumns<Source>(tile, whole, panel_operands, operands);
  if constexpr (!Source::kQ8) {
    if (tile.inputs % kInputGroup != 0) {
      PackColumns<Source>(TailOf<Source::kElement>(tile), kInputGroup / kPerOperand, panel_operands,
                          operands + whole * kPanel);
    }
  }
}

// Packs one operand for each column of a tile, from kPerOperand inputs. The weights of an input for
// all columns are contiguous: at from[0] and, for pairs, at from[1].
template <DType kType, int kPerOperand>
HWY_INLINE void PackInputs(const uint8_t* const* from, int panel_operands, uint32_t* operands) {
  const LaneU32 d;
  if constexpr (kPerOperand == 1) {
    for (int column = 0; column < kTile; column += kLanes) {
      uint32_t* to = operands + column / kPanel * kPanel * panel_operands + column % kPanel;
      hn::Store(F32Source<kType>::Load(from[0] + static_cast<size_t>(column) * SizeOf(kType)), d,
                to);
    }
  } else {
    const hn::Repartition<uint16_t, LaneU32> dh;
    for (int column = 0; column < kTile; column += kPanel) {
      const auto even = LoadAny(dh, from[0] + 2 * column);
      const auto odd = LoadAny(dh, from[kPerOperand - 1] + 2 * column);
      uint32_t* to = operands + column * panel_operands;
      hn::Store(hn::BitCast(d, hn::InterleaveWholeLower(dh, even, odd)), d, to);
      hn::Store(hn::BitCast(d, hn::InterleaveWholeUpper(dh, even, odd)), d, to + kLanes);
    }
  }
}

// Packs a tile whose columns are contiguous.
template <class Source>
void PackTransposed(const WeightTile& tile, uint32_t* operands) {
  HWY_DASSERT(0 < tile.columns && tile.columns <= kTile);
  HWY_DASSERT(0 < tile.inputs && tile.inputs <= kKBlock);
  constexpr DType kType = Source::kType;
  constexpr int kPerOperand = Source::Math::kPerOperand;
  constexpr size_t kElement = SizeOf(kType);
  constexpr int kInputsAhead = 32;
  const int padded = tile.padded();
  uint8_t copies[kPerOperand][kTile * kElement];
  for (int input = 0; input < padded; input += kPerOperand, operands += kPanel) {
    const uint8_t* from[kPerOperand];
    for (int i = 0; i < kPerOperand; ++i) {
      from[i] = copies[i];
      if (input + i >= tile.inputs) {
        std::memset(copies[i], 0, sizeof(copies[i]));
      } else if (tile.columns < kTile) {
        std::memset(copies[i], 0, sizeof(copies[i]));
        std::memcpy(copies[i], tile.transposed_data + (input + i) * tile.transposed_stride,
                    static_cast<size_t>(tile.columns) * kElement);
      } else {
        from[i] = tile.transposed_data + (input + i) * tile.transposed_stride;
        for (size_t line = 0; line < kTile * kElement; line += 64) {
          PrefetchAt(from[i] + line, kInputsAhead * tile.transposed_stride);
        }
      }
    }
    PackInputs<kType, kPerOperand>(from, padded / kPerOperand, operands);
  }
}

// Converts the scales of the tile's Q8_0 blocks to f32, into tile.scales.
inline void LoadScales(const WeightTile& tile) {
  HWY_DASSERT(tile.inputs % static_cast<int>(kQ8Block) == 0 && tile.inputs <= kKBlock);
  const LaneF32 df;
  const hn::Rebind<hwy::float16_t, LaneF32> dh;
  constexpr int kBlocks = kKBlock / static_cast<int>(kQ8Block);
  alignas(64) uint16_t bits[kBlocks][kTile];
  const int blocks = tile.inputs / static_cast<int>(kQ8Block);
  for (int i = 0; i < kTile; ++i) {
    const uint8_t* column = tile.column[i] + tile.offset;
    for (int block = 0; block < blocks; ++block) {
      std::memcpy(&bits[block][i], column + block * kQ8BlockBytes, sizeof(bits[0][0]));
    }
  }
  for (int block = 0; block < blocks; ++block) {
    for (int i = 0; i < kTile; i += kLanes) {
      const auto* half = reinterpret_cast<const uint8_t*>(&bits[block][i]);
      hn::Store(FromF16(df, LoadAny(dh, half)), df, tile.scales + block * kTile + i);
    }
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
