// Approximate logits of a tile of W by dot products of int8. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_SCREEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_SCREEN_INL_H_
#undef RIFFLE_LM_HEAD_SCREEN_INL_H_
#else
#define RIFFLE_LM_HEAD_SCREEN_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/dot_operands-inl.h"
#include "core/load-inl.h"
#include "lm_head/screen_args.h"
#include "lm_head/words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;

using ScreenI32 = hn::RebindToSigned<WordF32>;
using ScreenU32 = hn::RebindToUnsigned<WordF32>;
using ScreenU8 = hn::Repartition<uint8_t, WordF32>;
using ScreenI8 = hn::Repartition<int8_t, WordF32>;

// Columns whose approximate logits of a group of rows are in registers together.
constexpr int kScreenPanel = 2 * kLanes;
// Rows of a group: 24 of 32 registers hold their sums, or 8 of 16.
constexpr int kScreenRows = HWY_CAP_GE512 ? 6 : 2;
constexpr int kBlockWords = static_cast<int>(kQ8Block) / 4;

// Prefetches spans of columns one line after the other.
class ColumnPrefetcher {
 public:
  // `bytes` of columns `stride` apart, the first `away` from `from`.
  ColumnPrefetcher(const uint8_t* from, int64_t away, int64_t stride, int64_t bytes)
      : at_(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(away)),
        lines_((bytes + 63) / 64 + 1),
        left_(lines_),
        skip_(stride - 64 * lines_) {}
  HWY_INLINE void Next(int lines) {
    for (int i = 0; i < lines; ++i) {
      __builtin_prefetch(reinterpret_cast<const void*>(at_), 0, 2);
      at_ += 64;
      if (--left_ == 0) {
        left_ = lines_;
        at_ += static_cast<uintptr_t>(skip_);
      }
    }
  }
  // Of `columns` columns in `steps` steps.
  int Each(int columns, int steps) const {
    return static_cast<int>((columns * lines_ + steps - 1) / steps);
  }

 private:
  uintptr_t at_;
  int64_t lines_;  // of a column
  int64_t left_;
  int64_t skip_;
};

// A span of a panel of W.
struct ScreenPanel {
  const uint8_t* column[kScreenPanel];  // blocks of Q8_0
  int blocks;
  uint8_t* words;  // [blocks][kBlockWords][kScreenPanel] words of four weights + 128
  float* scales;   // [blocks][kScreenPanel]
  float* squares;  // [kScreenPanel] sums of squares of weights, added to
};

// Scales of Lanes(df) columns, at most eight. Gathered in a register: stored one by one they took
// as long as all else.
template <class DF>
HWY_INLINE void ScreenScales(DF df, const uint8_t* const* column, int64_t offset, float* scales) {
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

// 16 bytes of columns 0, 4, 8 ...: a block each.
template <class D>
HWY_INLINE hn::Vec<D> ScreenBytes(D d, const uint8_t* const* column, int64_t offset) {
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

// Half a block of kLanes columns: four words of each to `to`. Adds q * min(|q|, 127) of them.
HWY_INLINE void LayOutHalfBlock(const uint8_t* const* column, int64_t offset, uint32_t* to,
                                hn::Vec<ScreenI32>& squares) {
  const ScreenU8 d;
  const ScreenI8 di8;
  const ScreenI32 di;
  const ScreenU32 du;
  const auto first = hn::BitCast(du, ScreenBytes(d, column, offset));
  const auto second = hn::BitCast(du, ScreenBytes(d, column + 1, offset));
  const auto third = hn::BitCast(du, ScreenBytes(d, column + 2, offset));
  const auto fourth = hn::BitCast(du, ScreenBytes(d, column + 3, offset));
  const auto a = hn::InterleaveLower(du, first, third);
  const auto b = hn::InterleaveUpper(du, first, third);
  const auto c = hn::InterleaveLower(du, second, fourth);
  const auto e = hn::InterleaveUpper(du, second, fourth);
  const hn::Vec<ScreenU32> words[4] = {hn::InterleaveLower(du, a, c), hn::InterleaveUpper(du, a, c),
                                       hn::InterleaveLower(du, b, e),
                                       hn::InterleaveUpper(du, b, e)};
  for (int i = 0; i < 4; ++i) {
    const auto size = hn::BitCast(d, hn::Abs(hn::BitCast(di8, words[i])));  // -128 becomes 128
    const auto least = hn::BitCast(di8, hn::Min(size, hn::Set(d, uint8_t{127})));
    squares = hn::SumOfMulQuadAccumulate(di, size, least, squares);
    hn::Store(hn::Xor(words[i], hn::Set(du, 0x80808080u)), du, to + i * kScreenPanel);
  }
}

// The blocks of a panel at byte `offset` of its columns.
void LayOutScreen(const ScreenPanel& panel, int64_t offset, ColumnPrefetcher& prefetcher,
                  int lines) {
  const WordF32 df;
  const ScreenI32 di;
  for (int block = 0; block < panel.blocks; ++block) {
    const int64_t at = offset + block * kQ8BlockBytes;
    const hn::CappedTag<float, 8> some;
    for (int i = 0; i < kScreenPanel; i += static_cast<int>(hn::Lanes(some))) {
      ScreenScales(some, panel.column + i, at, panel.scales + block * kScreenPanel + i);
    }
  }
  for (int i = 0; i < kScreenPanel; i += kLanes) {
    auto squares = hn::Load(df, panel.squares + i);
    auto* words = reinterpret_cast<uint32_t*>(panel.words) + i;
    for (int block = 0; block < panel.blocks; ++block, words += kBlockWords * kScreenPanel) {
      prefetcher.Next(lines);
      const int64_t at = offset + block * kQ8BlockBytes + 2;
      auto of_block = hn::Zero(di);
      LayOutHalfBlock(panel.column + i, at, words, of_block);
      LayOutHalfBlock(panel.column + i, at + 16, words + 4 * kScreenPanel, of_block);
      const auto scale = hn::Load(df, panel.scales + block * kScreenPanel + i);
      squares = hn::MulAdd(hn::Mul(scale, scale), hn::ConvertTo(df, of_block), squares);
    }
    hn::Store(squares, df, panel.squares + i);
  }
}

// Adds the products of kRows rows and a panel to sums [kRows][kTile].
template <int kRows>
HWY_INLINE void ScreenKernel(const ScreenBlock* HWY_RESTRICT x, const ScreenPanel& panel,
                             float* HWY_RESTRICT sums, ColumnPrefetcher& prefetcher, int lines) {
  const WordF32 df;
  const ScreenI32 di;
  const ScreenU8 du8;
  const ScreenI8 di8;
  hn::Vec<WordF32> total[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    total[r][0] = hn::Load(df, sums + r * kTile);
    total[r][1] = hn::Load(df, sums + r * kTile + kLanes);
  }
  const uint8_t* HWY_RESTRICT w = panel.words;
  const float* HWY_RESTRICT scales = panel.scales;
  for (int block = 0; block < panel.blocks; ++block, ++x, scales += kScreenPanel) {
    prefetcher.Next(lines);
    hn::Vec<ScreenI32> sum[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = sum[r][1] = hn::Set(di, x[r * kScreenBlocks].start);
    }
    HWY_UNROLL(8)
    for (int i = 0; i < kBlockWords; ++i, w += 4 * kScreenPanel) {
      const auto w0 = hn::Load(du8, w);
      const auto w1 = hn::Load(du8, w + 4 * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const auto q = hn::BitCast(di8, hn::Set(di, x[r * kScreenBlocks].words[i]));
        sum[r][0] = hn::SumOfMulQuadAccumulate(di, w0, q, sum[r][0]);
        sum[r][1] = hn::SumOfMulQuadAccumulate(di, w1, q, sum[r][1]);
      }
    }
    const auto scale0 = hn::Load(df, scales);
    const auto scale1 = hn::Load(df, scales + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto step = hn::Set(df, x[r * kScreenBlocks].step);
      total[r][0] = hn::MulAdd(hn::ConvertTo(df, sum[r][0]), hn::Mul(scale0, step), total[r][0]);
      total[r][1] = hn::MulAdd(hn::ConvertTo(df, sum[r][1]), hn::Mul(scale1, step), total[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    hn::Store(total[r][0], df, sums + r * kTile);
    hn::Store(total[r][1], df, sums + r * kTile + kLanes);
  }
}

// kRows or fewer rows.
template <int kRows>
HWY_INLINE void ScreenGroup(const ScreenBlock* x, int rows, const ScreenPanel& panel, float* sums,
                            ColumnPrefetcher& prefetcher, int lines) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return ScreenGroup<kRows - 1>(x, rows, panel, sums, prefetcher, lines);
    }
  }
  ScreenKernel<kRows>(x, panel, sums, prefetcher, lines);
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
