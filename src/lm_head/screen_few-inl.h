// Approximate logits of few rows by dot products of int8 along the columns of W, which are read as
// they lie: for one to three rows laying W out costs more than the products. Included once per SIMD
// target.
#if defined(RIFFLE_LM_HEAD_SCREEN_FEW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_SCREEN_FEW_INL_H_
#undef RIFFLE_LM_HEAD_SCREEN_FEW_INL_H_
#else
#define RIFFLE_LM_HEAD_SCREEN_FEW_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "lm_head/screen-inl.h"
#include "lm_head/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::PrefetchAt;

// Two blocks are 17 words: the ninth has the last weights of the first and the second's scale.
constexpr int64_t kPairWords = 2 * kQ8BlockBytes / 4;
constexpr int64_t BlockOfWord(int64_t word) {
  return word / kPairWords * 2 + (word % kPairWords > kPairWords / 2 ? 1 : 0);
}

// Where the scales of the 16 words of a chunk are among the 64 halfwords of the chunk before and
// itself. Chunks 17 apart are alike.
struct FewScalePlaces {
  alignas(64) uint16_t of[kPairWords][32];  // the upper half is not used

  constexpr FewScalePlaces() : of() {
    for (int64_t chunk = 0; chunk < kPairWords; ++chunk) {
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t byte = BlockOfWord(16 * chunk + i) * kQ8BlockBytes;
        of[chunk][i] = static_cast<uint16_t>((byte - 64 * chunk + 64) / 2);
      }
    }
  }
};

struct FewColumns {
  const uint8_t* const* column;
  int64_t bytes;            // of a column
  int64_t ahead;            // from a column to the one to be prefetched
  const FewScreenChunk* x;  // [rows][chunks]
  int64_t chunks;
};

constexpr int64_t kFewAhead = 16;  // columns: 12 to 32 are as good, 4 half as fast

using FewBytes = hn::Vec<ScreenU8>;

// The scales of the words of vector `number` of a column.
HWY_INLINE hn::Vec<WordF32> FewScales(const FewColumns& few, int column, int64_t number,
                                      const uint16_t* places, FewBytes before, FewBytes here) {
  const WordF32 df;
  const hn::Rebind<hwy::float16_t, WordF32> dh;
  if constexpr (kLanes == 16) {
    const hn::Repartition<uint16_t, WordF32> d;
    const auto scales = hn::TwoTablesLookupLanes(d, hn::BitCast(d, before), hn::BitCast(d, here),
                                                 hn::SetTableIndices(d, places));
    return FromF16(df, hn::BitCast(dh, hn::LowerHalf(scales)));
  } else {
    const hn::Rebind<uint16_t, WordF32> d;
    alignas(16) uint16_t scales[kLanes];
    const int64_t last = few.bytes / kQ8BlockBytes - 1;
    for (int i = 0; i < kLanes; ++i) {
      const int64_t block = std::min(BlockOfWord(number * kLanes + i), last);
      std::memcpy(scales + i, few.column[column] + block * kQ8BlockBytes, sizeof(uint16_t));
    }
    return FromF16(df, hn::BitCast(dh, hn::Load(d, scales)));
  }
}

// Sums of kColumns columns, still spread over the lanes, to sums [kRows][kLanes][kLanes] and
// squares [kLanes][kLanes].
template <int kRows, int kColumns>
HWY_INLINE void FewKernel(const FewColumns& few, int first, float* HWY_RESTRICT sums,
                          float* HWY_RESTRICT squares) {
  static constexpr FewScalePlaces kPlaces;
  const WordF32 df;
  const ScreenI32 di;
  const ScreenU8 d8;
  const ScreenI8 di8;
  constexpr int64_t kBytes = 4 * kLanes;
  hn::Vec<WordF32> total[kRows][kColumns];
  hn::Vec<WordF32> square[kColumns];
  FewBytes before[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    for (int r = 0; r < kRows; ++r) {
      total[r][c] = hn::Zero(df);
    }
    square[c] = hn::Zero(df);
    before[c] = hn::Zero(d8);
  }
  int64_t phase = 0;
  for (int64_t at = 0; at < few.bytes; at += kBytes) {
    FewBytes w[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      const uint8_t* from = few.column[first + c] + at;
      PrefetchAt(from, few.ahead);
      w[c] = at + kBytes <= few.bytes ? hn::LoadU(d8, from)
                                      : hn::LoadN(d8, from, static_cast<size_t>(few.bytes - at));
    }
    hn::Vec<WordF32> scale[kColumns];
    FewBytes weight[kColumns];  // + 128
    for (int c = 0; c < kColumns; ++c) {
      scale[c] = FewScales(few, first + c, at / kBytes, kPlaces.of[phase], before[c], w[c]);
      square[c] = hn::MulAdd(scale[c], scale[c], square[c]);
      before[c] = w[c];
      weight[c] = hn::Xor(w[c], hn::Set(d8, uint8_t{0x80}));
    }
    phase = phase + 1 == kPairWords ? 0 : phase + 1;
    for (int r = 0; r < kRows; ++r) {
      const FewScreenChunk& x = few.x[r * few.chunks + at / 64];
      const auto start = hn::Load(di, x.start + at % 64 / 4);
      const auto high = hn::Load(di8, x.high + at % 64);
      const auto low = hn::Load(di8, x.low + at % 64);
      const auto step = hn::Load(df, x.step + at % 64 / 4);
      for (int c = 0; c < kColumns; ++c) {
        const auto upper = hn::SumOfMulQuadAccumulate(di, weight[c], high, start);
        const auto sum = hn::SumOfMulQuadAccumulate(di, weight[c], low, hn::ShiftLeft<7>(upper));
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

// The sums of kLanes vectors.
HWY_INLINE hn::Vec<WordF32> SumVectors(const float* vectors) {
  const WordF32 df;
  const WordU32 du;
  WordVec v[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    v[i] = hn::BitCast(du, hn::Load(df, vectors + i * kLanes));
  }
  TransposeWords(v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      v[i] = hn::BitCast(du, hn::Add(hn::BitCast(df, v[i]), hn::BitCast(df, v[i + half])));
    }
  }
  return hn::BitCast(df, v[0]);
}

// kTile columns: sums [kRows][kTile], and squares [kTile] of which the roots are at least the
// columns' norms.
template <int kRows>
void FewScreen(const FewColumns& few, float* sums, float* squares) {
  constexpr int kColumns = 4;
  const WordF32 df;
  for (int i = 0; i < kTile; i += kLanes) {
    alignas(64) float spread[(kRows + 1) * kLanes * kLanes];
    float* spread_squares = spread + kRows * kLanes * kLanes;
    for (int c = 0; c < kLanes; c += kColumns) {
      FewKernel<kRows, kColumns>(few, i + c, spread + c * kLanes, spread_squares + c * kLanes);
    }
    for (int r = 0; r < kRows; ++r) {
      hn::Store(SumVectors(spread + r * kLanes * kLanes), df, sums + r * kTile + i);
    }
    // Four weights a word, each 128 scales at most.
    constexpr float kMost = 4 * 128 * 128;
    hn::Store(hn::Mul(SumVectors(spread_squares), hn::Set(df, kMost)), df, squares + i);
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
