// Approximate logits of many rows: W is packed into panels, then multiplied by dot products of
// int8. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PREFILTER_PACKED_INT8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PREFILTER_PACKED_INT8_INL_H_
#undef RIFFLE_LM_HEAD_PREFILTER_PACKED_INT8_INL_H_
#else
#define RIFFLE_LM_HEAD_PREFILTER_PACKED_INT8_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/dot_operands-inl.h"
#include "core/int8_dot-inl.h"
#include "lm_head/lanes-inl.h"
#include "lm_head/prefilter/prefilter_args.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
#if RIFFLE_INT8_MATRICES
using core::HWY_NAMESPACE::AddInt8Matrices;
using core::HWY_NAMESPACE::SplitRows;
#endif
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::Int8Dot;

using LaneBytes = hn::Repartition<uint8_t, LaneF32>;
using LaneSignedBytes = hn::Repartition<int8_t, LaneF32>;

// Rows that are multiplied together: their sums for a panel take 24 of 32 registers, or 8 of 16.
constexpr int kInt8Rows = HWY_CAP_GE512 || HWY_ARCH_ARM_A64 ? 6 : 2;
constexpr int kBlockLanes = static_cast<int>(kQ8Block) / 4;

// Prefetches the same range of bytes of several columns, one cache line at a time.
class ColumnPrefetcher {
 public:
  // `bytes` of each column. Columns are `stride` apart; the first range begins at `from` + `away`.
  ColumnPrefetcher(const uint8_t* from, int64_t away, int64_t stride, int64_t bytes)
      : at_(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(away)),
        lines_((bytes + 63) / 64 + 1),
        remaining_(lines_),
        skip_(stride - 64 * lines_) {}
  HWY_INLINE void Next(int lines) {
    for (int i = 0; i < lines; ++i) {
      __builtin_prefetch(reinterpret_cast<const void*>(at_), 0, 2);
      at_ += 64;
      if (--remaining_ == 0) {
        remaining_ = lines_;
        at_ += static_cast<uintptr_t>(skip_);
      }
    }
  }
  // How many lines each call of Next must fetch, so that `steps` calls cover `columns` columns.
  int Each(int columns, int steps) const {
    return static_cast<int>((columns * lines_ + steps - 1) / steps);
  }

 private:
  uintptr_t at_;
  int64_t lines_;  // in the range of one column
  int64_t remaining_;
  int64_t skip_;
};

// Up to kPrefilterBlocks blocks of a panel of W.
struct Int8Panel {
  const uint8_t* column[kPanel];  // blocks of Q8_0
  int blocks;
  // [blocks][kBlockLanes][kPanel] lanes of four bytes, each weight + Int8Dot::kBias; with
  // RIFFLE_INT8_MATRICES, two lanes of a column side by side: [blocks][kBlockLanes / 2][kPanel][2].
  uint8_t* weights;
  float* scales;   // [blocks][kPanel]
  float* squares;  // [kPanel] squared norms of the columns; each block adds its part
};

// Converts the scales of Lanes(df) columns. It gathers them in a register: storing them one by one
// and loading the vector took as long as all the rest.
template <class DF>
HWY_INLINE void GatherScales(DF df, const uint8_t* const* column, int64_t offset, float* scales) {
  const hn::Rebind<uint16_t, DF> d;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const auto bits = [&](int i) HWY_ATTR {
    uint16_t value;
    std::memcpy(&value, column[i] + offset, sizeof(value));
    return value;
  };
  if constexpr (hn::MaxLanes(df) == 8) {
    const auto v = hn::Dup128VecFromValues(d, bits(0), bits(1), bits(2), bits(3), bits(4), bits(5),
                                           bits(6), bits(7));
    hn::Store(FromF16(df, hn::BitCast(dh, v)), df, scales);
  } else {
    static_assert(hn::MaxLanes(df) == 4);
    const uint16_t four[4] = {bits(0), bits(1), bits(2), bits(3)};
    hn::Store(FromF16(df, hn::BitCast(dh, hn::LoadU(d, four))), df, scales);
  }
}

// 16 bytes of each of the columns 0, 4, 8 ..., each in a 16-byte block of the vector.
template <class D>
HWY_INLINE hn::Vec<D> LoadFourColumns(D d, const uint8_t* const* column, int64_t offset) {
  const hn::CappedTag<uint8_t, 16> d16;
  auto v = hn::ResizeBitCast(d, hn::LoadU(d16, column[0] + offset));
  if constexpr (hn::MaxLanes(d) >= 32) {
    v = hn::InsertBlock<1>(v, hn::LoadU(d16, column[4] + offset));
  }
  if constexpr (hn::MaxLanes(d) >= 64) {
    v = hn::InsertBlock<2>(v, hn::LoadU(d16, column[8] + offset));
    v = hn::InsertBlock<3>(v, hn::LoadU(d16, column[12] + offset));
  }
  return v;
}

// Packs 16 weights of each of kLanes columns, four lanes per column. `column` and `offset` say
// where they are, `first_column` is the first one's number in the panel, and `to` is where the
// panel's lanes of these weights begin. Adds |w| * min(|w|, 127) of every weight w to its column's
// lane of `squares`.
HWY_INLINE void PackHalfBlock(const uint8_t* const* column, int64_t offset, int first_column,
                              uint32_t* to, VecI32& squares) {
  const LaneBytes d;
  const LaneSignedBytes di8;
  const LaneI32 di;
  const LaneU32 du;
  const auto first = hn::BitCast(du, LoadFourColumns(d, column, offset));
  const auto second = hn::BitCast(du, LoadFourColumns(d, column + 1, offset));
  const auto third = hn::BitCast(du, LoadFourColumns(d, column + 2, offset));
  const auto fourth = hn::BitCast(du, LoadFourColumns(d, column + 3, offset));
  const auto a = hn::InterleaveLower(du, first, third);
  const auto b = hn::InterleaveUpper(du, first, third);
  const auto c = hn::InterleaveLower(du, second, fourth);
  const auto e = hn::InterleaveUpper(du, second, fourth);
  const VecU32 packed[4] = {hn::InterleaveLower(du, a, c), hn::InterleaveUpper(du, a, c),
                            hn::InterleaveLower(du, b, e), hn::InterleaveUpper(du, b, e)};
  for (int i = 0; i < 4; ++i) {
    const auto size = hn::BitCast(d, hn::Abs(hn::BitCast(di8, packed[i])));  // 128 for -128
    const auto clamped = hn::Min(size, hn::Set(d, uint8_t{127}));
    squares = Int8Dot::StepUnsigned(di, size, clamped, squares);
#if !RIFFLE_INT8_MATRICES
    hn::Store(hn::Xor(packed[i], hn::Set(du, Int8Dot::kSignFlip)), du,
              to + i * kPanel + first_column);
#endif
  }
#if RIFFLE_INT8_MATRICES
  for (int i = 0; i < 4; i += 2) {
    uint32_t* pairs = to + i * kPanel + 2 * first_column;
    hn::Store(hn::InterleaveLower(du, packed[i], packed[i + 1]), du, pairs);
    hn::Store(hn::InterleaveUpper(du, packed[i], packed[i + 1]), du, pairs + kLanes);
  }
#endif
}

// Packs the blocks of a panel that start at byte `offset` of its columns. Prefetches `lines` lines
// per block.
void PackPanel(const Int8Panel& panel, int64_t offset, ColumnPrefetcher& prefetcher, int lines) {
  const LaneF32 df;
  const LaneI32 di;
  for (int block = 0; block < panel.blocks; ++block) {
    const int64_t at = offset + block * kQ8BlockBytes;
    const hn::CappedTag<float, 8> some;
    for (int i = 0; i < kPanel; i += static_cast<int>(hn::Lanes(some))) {
      GatherScales(some, panel.column + i, at, panel.scales + block * kPanel + i);
    }
  }
  for (int i = 0; i < kPanel; i += kLanes) {
    auto squares = hn::Load(df, panel.squares + i);
    auto* to = reinterpret_cast<uint32_t*>(panel.weights);
    for (int block = 0; block < panel.blocks; ++block, to += kBlockLanes * kPanel) {
      prefetcher.Next(lines);
      const int64_t at = offset + block * kQ8BlockBytes + 2;
      auto of_block = hn::Zero(di);
      PackHalfBlock(panel.column + i, at, i, to, of_block);
      PackHalfBlock(panel.column + i, at + 16, i, to + 4 * kPanel, of_block);
      const auto scale = hn::Load(df, panel.scales + block * kPanel + i);
      squares = hn::MulAdd(hn::Mul(scale, scale), hn::ConvertTo(df, of_block), squares);
    }
    hn::Store(squares, df, panel.squares + i);
  }
}

// The products of a block of kRows rows and a panel's columns: sum[row][half of the panel].
#if RIFFLE_INT8_MATRICES
template <int kRows>
HWY_INLINE void BlockSums(const Int8Block* HWY_RESTRICT x, const uint8_t* HWY_RESTRICT w,
                          VecI32 (&sum)[kRows][2]) {
  constexpr int kPairs = (kRows + 1) / 2;  // the last row of an odd number is its own partner
  constexpr int kColumnPairs = kPanel / 2;
  const LaneU32 du;
  const hn::Repartition<uint64_t, LaneU32> du64;
  VecI32 sums[kPairs][kColumnPairs];
  for (auto& of_pair : sums) {
    for (auto& of_columns : of_pair) {
      of_columns = hn::Zero(LaneI32());
    }
  }
  for (int i = 0; i < kBlockLanes; i += 4) {
    VecU32 rows[kPairs][2];
    for (int p = 0; p < kPairs; ++p) {
      const auto lanes = [&](int r) HWY_ATTR {
        return hn::LoadU(du64, reinterpret_cast<const uint64_t*>(
                                   x[std::min(r, kRows - 1) * kPrefilterBlocks].lanes + i));
      };
      const auto a = lanes(2 * p);
      const auto b = lanes(2 * p + 1);
      rows[p][0] = hn::BitCast(du, hn::InterleaveLower(du64, a, b));
      rows[p][1] = hn::BitCast(du, hn::InterleaveUpper(du64, a, b));
    }
    for (int half = 0; half < 2; ++half) {
      for (int c = 0; c < kColumnPairs; ++c, w += 16) {
        const auto columns = hn::Load(du, reinterpret_cast<const uint32_t*>(w));
        for (int p = 0; p < kPairs; ++p) {
          sums[p][c] = AddInt8Matrices(sums[p][c], rows[p][half], columns);
        }
      }
    }
  }
  for (int p = 0; p < kPairs; ++p) {
    const int last = std::min(2 * p + 1, kRows - 1);
    for (int half = 0; half < 2; ++half) {
      VecI32 even, odd;
      SplitRows(sums[p][2 * half], sums[p][2 * half + 1], even, odd);
      sum[last][half] = odd;
      sum[2 * p][half] = even;
    }
  }
}
#else
template <int kRows>
HWY_INLINE void BlockSums(const Int8Block* HWY_RESTRICT x, const uint8_t* HWY_RESTRICT w,
                          VecI32 (&sum)[kRows][2]) {
  const LaneI32 di;
  const LaneBytes du8;
  const LaneSignedBytes di8;
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = sum[r][1] = hn::Set(di, x[r * kPrefilterBlocks].initial_sum);
  }
  HWY_UNROLL(8)
  for (int i = 0; i < kBlockLanes; ++i, w += 4 * kPanel) {
    const auto w0 = hn::Load(du8, w);
    const auto w1 = hn::Load(du8, w + 4 * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto q = hn::BitCast(di8, hn::Set(di, x[r * kPrefilterBlocks].lanes[i]));
      sum[r][0] = Int8Dot::Step(di, w0, q, sum[r][0]);
      sum[r][1] = Int8Dot::Step(di, w1, q, sum[r][1]);
    }
  }
}
#endif

// Adds the products of kRows rows and a panel to sums [kRows][kTile]. Prefetches `lines` lines per
// block.
template <int kRows>
HWY_INLINE void Int8Kernel(const Int8Block* HWY_RESTRICT x, const Int8Panel& panel,
                           float* HWY_RESTRICT sums, ColumnPrefetcher& prefetcher, int lines) {
  const LaneF32 df;
  VecF32 total[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    total[r][0] = hn::Load(df, sums + r * kTile);
    total[r][1] = hn::Load(df, sums + r * kTile + kLanes);
  }
  const uint8_t* HWY_RESTRICT w = panel.weights;
  const float* HWY_RESTRICT scales = panel.scales;
  for (int block = 0; block < panel.blocks; ++block, ++x, scales += kPanel) {
    prefetcher.Next(lines);
    VecI32 sum[kRows][2];
    BlockSums<kRows>(x, w, sum);
    w += kQ8Block * kPanel;
    const auto scale0 = hn::Load(df, scales);
    const auto scale1 = hn::Load(df, scales + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto step = hn::Set(df, x[r * kPrefilterBlocks].step);
      total[r][0] = hn::MulAdd(hn::ConvertTo(df, sum[r][0]), hn::Mul(scale0, step), total[r][0]);
      total[r][1] = hn::MulAdd(hn::ConvertTo(df, sum[r][1]), hn::Mul(scale1, step), total[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    hn::Store(total[r][0], df, sums + r * kTile);
    hn::Store(total[r][1], df, sums + r * kTile + kLanes);
  }
}

// Runs the kernel for `rows` rows, at most kRows of them.
template <int kRows>
HWY_INLINE void Int8Group(const Int8Block* x, int rows, const Int8Panel& panel, float* sums,
                          ColumnPrefetcher& prefetcher, int lines) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return Int8Group<kRows - 1>(x, rows, panel, sums, prefetcher, lines);
    }
  }
  Int8Kernel<kRows>(x, panel, sums, prefetcher, lines);
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
