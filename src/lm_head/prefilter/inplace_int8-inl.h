// Approximate logits of one to kInplaceRows rows. The int8 dot products run along the columns of W,
// which are read in place, because packing W costs more than the products of so few rows. Included
// once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PREFILTER_INPLACE_INT8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PREFILTER_INPLACE_INT8_INL_H_
#undef RIFFLE_LM_HEAD_PREFILTER_INPLACE_INT8_INL_H_
#else
#define RIFFLE_LM_HEAD_PREFILTER_INPLACE_INT8_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "lm_head/prefilter/packed_int8-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::PrefetchAt;

// A lane is four bytes of a column. Two blocks of Q8_0, 68 bytes, take 17 lanes. The ninth lane
// holds the last two weights of the first block and the scale of the second, and belongs to the
// first.
constexpr int64_t kPairLanes = 2 * kQ8BlockBytes / 4;
constexpr int64_t BlockOfLane(int64_t lane) {
  return lane / kPairLanes * 2 + (lane % kPairLanes > kPairLanes / 2 ? 1 : 0);
}

// Where a line of 16 lanes finds the scale of each lane: a position among the 64 halfwords of the
// previous line and of this one. The pattern repeats every 17 lines.
struct ScalePositions {
  alignas(64) uint16_t of[kPairLanes][32];  // the upper half is unused

  constexpr ScalePositions() : of() {
    for (int64_t line = 0; line < kPairLanes; ++line) {
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t byte = BlockOfLane(16 * line + i) * kQ8BlockBytes;
        of[line][i] = static_cast<uint16_t>((byte - 64 * line + 64) / 2);
      }
    }
  }
};

struct InplaceTile {
  const uint8_t* const* column;  // [kTile]
  int64_t bytes;                 // of a column
  int64_t ahead;                 // bytes from a column to the one that is prefetched with it
  const InplaceLine* x;          // [rows][lines]
  int64_t lines;
};

constexpr int64_t kInplaceAhead = 16;  // columns; 12 to 32 are as good, 4 takes twice as long

using ColumnBytes = hn::Vec<LaneBytes>;

// The scales for the lanes of vector `number` of a column. `here` holds its bytes, `before` those
// of the vector before it.
HWY_INLINE VecF32 ColumnScales(const InplaceTile& tile, int column, int64_t number,
                               const uint16_t* positions, ColumnBytes before, ColumnBytes here) {
  const LaneF32 df;
  const hn::Rebind<hwy::float16_t, LaneF32> dh;
  if constexpr (kLanes == 16) {
    const hn::Repartition<uint16_t, LaneF32> d;
    const auto scales = hn::TwoTablesLookupLanes(d, hn::BitCast(d, before), hn::BitCast(d, here),
                                                 hn::SetTableIndices(d, positions));
    return FromF16(df, hn::BitCast(dh, hn::LowerHalf(scales)));
  } else {
    const hn::Rebind<uint16_t, LaneF32> d;
    alignas(16) uint16_t scales[kLanes];
    const int64_t last = tile.bytes / kQ8BlockBytes - 1;
    for (int i = 0; i < kLanes; ++i) {
      const int64_t block = std::min(BlockOfLane(number * kLanes + i), last);
      std::memcpy(scales + i, tile.column[column] + block * kQ8BlockBytes, sizeof(uint16_t));
    }
    return FromF16(df, hn::BitCast(dh, hn::Load(d, scales)));
  }
}

// Multiplies kColumns columns by kRows rows. Each sum is stored as a vector, whose lanes the caller
// adds up: sums [kRows][kLanes][kLanes], squares of scales [kLanes][kLanes].
template <int kRows, int kColumns>
HWY_INLINE void InplaceInt8Kernel(const InplaceTile& tile, int first, float* HWY_RESTRICT sums,
                                  float* HWY_RESTRICT squares) {
  static constexpr ScalePositions kPositions;
  const LaneF32 df;
  const LaneI32 di;
  const LaneBytes d8;
  const LaneSignedBytes di8;
  constexpr int64_t kBytes = 4 * kLanes;
  VecF32 total[kRows][kColumns];
  VecF32 square[kColumns];
  ColumnBytes before[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    for (int r = 0; r < kRows; ++r) {
      total[r][c] = hn::Zero(df);
    }
    square[c] = hn::Zero(df);
    before[c] = hn::Zero(d8);
  }
  int64_t phase = 0;
  for (int64_t at = 0; at < tile.bytes; at += kBytes) {
    ColumnBytes w[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      const uint8_t* from = tile.column[first + c] + at;
      PrefetchAt(from, tile.ahead);
      w[c] = at + kBytes <= tile.bytes ? hn::LoadU(d8, from)
                                       : hn::LoadN(d8, from, static_cast<size_t>(tile.bytes - at));
    }
    VecF32 scale[kColumns];
    ColumnBytes weight[kColumns];  // packed
    for (int c = 0; c < kColumns; ++c) {
      scale[c] = ColumnScales(tile, first + c, at / kBytes, kPositions.of[phase], before[c], w[c]);
      square[c] = hn::MulAdd(scale[c], scale[c], square[c]);
      before[c] = w[c];
      weight[c] = hn::Xor(w[c], hn::Set(d8, static_cast<uint8_t>(Int8Dot::kSignFlip & 0xff)));
    }
    phase = phase + 1 == kPairLanes ? 0 : phase + 1;
    for (int r = 0; r < kRows; ++r) {
      const InplaceLine& x = tile.x[r * tile.lines + at / 64];
      const auto start = hn::Load(di, x.initial_sum + at % 64 / 4);
      const auto high = hn::Load(di8, x.high + at % 64);
      const auto low = hn::Load(di8, x.low + at % 64);
      const auto step = hn::Load(df, x.step + at % 64 / 4);
      for (int c = 0; c < kColumns; ++c) {
        const auto upper = Int8Dot::Step(di, weight[c], high, start);
        const auto sum = Int8Dot::Step(di, weight[c], low, hn::ShiftLeft<7>(upper));
        total[r][c] = hn::MulAdd(hn::Mul(hn::ConvertTo(df, sum), step), scale[c], total[r][c]);
      }
    }
  }
  for (int c = 0; c < kColumns; ++c) {
    for (int r = 0; r < kRows; ++r) {
      hn::Store(total[r][c], df, sums + (r * kLanes + c) * kLanes);
    }
    hn::Store(square[c], df, squares + c * kLanes);
  }
}

// The sums of the lanes of kLanes vectors, one in each lane.
HWY_INLINE VecF32 SumVectors(const float* vectors) {
  const LaneF32 df;
  const LaneU32 du;
  VecU32 v[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    v[i] = hn::BitCast(du, hn::Load(df, vectors + i * kLanes));
  }
  TransposeLanes(v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      v[i] = hn::BitCast(du, hn::Add(hn::BitCast(df, v[i]), hn::BitCast(df, v[i + half])));
    }
  }
  return hn::BitCast(df, v[0]);
}

// Stores approximate logits of a tile in sums [kRows][kTile], and upper bounds of the squared norms
// of its columns in squares [kTile].
template <int kRows>
void InplaceInt8(const InplaceTile& tile, float* sums, float* squares) {
  constexpr int kColumns = 4;
  const LaneF32 df;
  for (int i = 0; i < kTile; i += kLanes) {
    alignas(64) float spread[(kRows + 1) * kLanes * kLanes];
    float* spread_squares = spread + kRows * kLanes * kLanes;
    for (int c = 0; c < kLanes; c += kColumns) {
      InplaceInt8Kernel<kRows, kColumns>(tile, i + c, spread + c * kLanes,
                                         spread_squares + c * kLanes);
    }
    for (int r = 0; r < kRows; ++r) {
      hn::Store(SumVectors(spread + r * kLanes * kLanes), df, sums + r * kTile + i);
    }
    // A lane has four weights, each of magnitude at most 128 times the scale.
    constexpr float kMaxSquare = 4 * 128 * 128;
    hn::Store(hn::Mul(SumVectors(spread_squares), hn::Set(df, kMaxSquare)), df, squares + i);
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
