// Kernels for the few rows of a decode where the target has bf16 dot products: they read keys and
// values where they lie. Every result is the same chain of the same steps as in dot-inl.h, so the
// bits are those of prefill. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_SMALL_M_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_SMALL_M_INL_H_
#undef RIFFLE_ATTENTION_SMALL_M_INL_H_
#else
#define RIFFLE_ATTENTION_SMALL_M_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

#include "attention/dot-inl.h"
#include "attention/kv_block-inl.h"
#include "attention/softmax-inl.h"

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Exp2;
using core::HWY_NAMESPACE::LoadAny;

// Four words of each of 16 / kRows keys, kRows / 4 times: [keys][kRows / 4][4 words].
template <int kRows, class DW>
HWY_INLINE hn::Vec<DW> LoadKeys(DW dw, const uint8_t* const* rows, int w) {
  const hn::Repartition<uint8_t, DW> d8;
  const auto load = [&](int key) HWY_ATTR {
    // Volatile: one load more is cheap, but 16 pointers kept in registers are kept in vectors.
    const uint8_t* row = *const_cast<const uint8_t* const volatile*>(rows + key);
    return hn::BitCast(dw, hn::LoadDup128(d8, row + 4 * w));
  };
  if constexpr (kRows == 16) {
    return load(0);
  } else if constexpr (kRows == 8) {
    return hn::IfThenElse(hn::FirstN(dw, 8), load(0), load(1));
  } else {
    const auto low = hn::IfThenElse(hn::FirstN(dw, 4), load(0), load(1));
    const auto high = hn::IfThenElse(hn::FirstN(dw, 12), load(2), load(3));
    return hn::IfThenElse(hn::FirstN(dw, 8), low, high);
  }
}

// A word of kRows rows of q, once for every key of a vector.
template <int kRows, class DW>
HWY_INLINE hn::Vec<DW> LoadRows(DW dw, const uint32_t* q) {
  if constexpr (kRows == 16) {
    return hn::Load(dw, q);
  } else if constexpr (kRows == 8) {
    const auto half = hn::Load(hn::Half<DW>(), q);
    return hn::Combine(dw, half, half);
  } else {
    return hn::LoadDup128(dw, q);
  }
}

// Scores of kVecs * 16 / kRows keys, in vectors of [keys][kRows]: four words of as many keys as fit
// are loaded side by side, then each word is repeated over the rows of its key, which costs nothing
// beside dot products. (A vector of 4 or 8 rows and a broadcast from memory a key took 2 to 2.5
// times as long: Zen 4 runs two short dot products a cycle but loads less than two words for them.)
// Eight vectors, a step of each in turn, as a product takes six cycles.
//   q  [words][kRows]; rows [keys]; scores [keys][kRows], aligned; words is a multiple of 4
template <int kRows, int kVecs>
HWY_INLINE void ScoresInPlace(const uint32_t* HWY_RESTRICT q, const uint8_t* const* rows, int words,
                              float* HWY_RESTRICT scores, const Ahead& ahead) {
  const FloatTag<16> df;
  const hn::CappedTag<uint32_t, 16> dw;
  const hn::Repartition<hwy::bfloat16_t, decltype(df)> dbf;
  constexpr int kKeys = 16 / kRows;             // of a vector
  constexpr int kPrefetch = kVecs * kKeys / 4;  // rows; four words are a fourth of a line
  auto unused = hn::Zero(df);
  hn::Vec<decltype(df)> sum[kVecs];
  for (int i = 0; i < kVecs; ++i) {
    sum[i] = hn::Zero(df);
  }
  for (int w = 0; w < words; w += 4, q += 4 * kRows) {
    for (int i = 0; i < kPrefetch; ++i) {
      const int row = (w >> 2 & 3) * kPrefetch + i;
      __builtin_prefetch(ahead.rows[row] + (w >> 4) * ahead.step, 0, 2);
    }
    hn::Vec<decltype(dw)> k[kVecs];
    for (int i = 0; i < kVecs; ++i) {
      k[i] = LoadKeys<kRows>(dw, rows + i * kKeys, w);
    }
    const auto step = [&](auto word_of) HWY_ATTR {
      constexpr int kWord = decltype(word_of)::value;
      const auto x = hn::BitCast(dbf, LoadRows<kRows>(dw, q + kWord * kRows));
      for (int i = 0; i < kVecs; ++i) {
        sum[i] = hn::ReorderWidenMulAccumulate(df, hn::BitCast(dbf, hn::Broadcast<kWord>(k[i])), x,
                                               sum[i], unused);
      }
    };
    step(std::integral_constant<int, 0>());
    step(std::integral_constant<int, 1>());
    step(std::integral_constant<int, 2>());
    step(std::integral_constant<int, 3>());
  }
  for (int i = 0; i < kVecs; ++i) {
    hn::Store(sum[i], df, scores + 16 * i);
  }
}

// Scores of `keys` keys, a multiple of 16, against a tile of up to 16 lanes.
HWY_INLINE void DirectScores(const uint32_t* q, int lanes, const uint8_t* const* rows, int keys,
                             int words, float* scores, Ahead ahead) {
  while (keys > 0) {
    int done = 16;
    if (lanes == 4 && keys >= 32) {
      ScoresInPlace<4, 8>(q, rows, words, scores, ahead);
      done = 32;
    } else if (lanes == 4) {
      ScoresInPlace<4, 4>(q, rows, words, scores, ahead);
    } else if (lanes == 8) {
      ScoresInPlace<8, 8>(q, rows, words, scores, ahead);
    } else {
      ScoresInPlace<16, 8>(q, rows, words, scores, ahead);
      done = 8;
    }
    keys -= done;
    rows += done;
    ahead.rows += done;
    scores += done * lanes;
  }
}

// Values where they lie, and rows to prefetch meanwhile.
struct DirectValues {
  const uint8_t* const* rows;   // [keys]
  const uint8_t* const* ahead;  // [keys]
  int keys;                     // even
  bool fresh;                   // sums are written, not added to
};

// ValueKernel over them: kRows rows, 32 * kHalves columns.
template <int kRows, int kHalves, bool kAhead>
HWY_INLINE void DirectValueKernel(const uint32_t* HWY_RESTRICT p, int lanes, const DirectValues& v,
                                  int column, int columns, float* HWY_RESTRICT sums) {
  const FloatTag<16> df;
  const hn::CappedTag<uint16_t, 32> dh;
  const hn::CappedTag<uint32_t, 16> dw;
  constexpr int kVecs = 2 * kHalves;
  hn::Vec<decltype(df)> sum[kRows][kVecs];
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      sum[row][i] = v.fresh ? hn::Zero(df) : hn::Load(df, sums + row * columns + i * 16);
    }
  }
  for (int key = 0; key < v.keys; key += 2, p += lanes) {
    hn::Vec<decltype(dw)> x[kVecs];
    for (int i = 0; i < kHalves; ++i) {
      const auto even = LoadAny(dh, v.rows[key] + 2 * column + 64 * i);
      const auto odd = LoadAny(dh, v.rows[key + 1] + 2 * column + 64 * i);
      x[2 * i] = hn::BitCast(dw, hn::InterleaveWholeLower(dh, even, odd));
      x[2 * i + 1] = hn::BitCast(dw, hn::InterleaveWholeUpper(dh, even, odd));
      if constexpr (kAhead) {
        __builtin_prefetch(v.ahead[key] + 2 * column + 64 * i, 0, 2);
        __builtin_prefetch(v.ahead[key + 1] + 2 * column + 64 * i, 0, 2);
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int i = 0; i < kVecs; ++i) {
        sum[row][i] = BF16Math::Step(df, p[row], x[i], sum[row][i]);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      hn::Store(sum[row][i], df, sums + row * columns + i * 16);
    }
  }
}

// The columns of up to four rows, or of eight.
template <int kRows, bool kAhead>
HWY_INLINE void DirectValueRows(const uint32_t* p, int lanes, const DirectValues& v, int columns,
                                float* sums) {
  constexpr int kHalves = kRows > 4 ? 1 : 2;
  int column = 0;
  for (; column + 32 * kHalves <= columns; column += 32 * kHalves) {
    DirectValueKernel<kRows, kHalves, kAhead>(p, lanes, v, column, columns, sums + column);
  }
  if (column < columns) {
    DirectValueKernel<kRows, 1, kAhead>(p, lanes, v, column, columns, sums + column);
  }
}

// sums[row][column] += p * v; the first rows prefetch.
//   p  [v.keys / 2][lanes] pairs; columns == head_dim, a multiple of 32
HWY_INLINE void AddDirectValues(const uint32_t* p, int lanes, int rows, const DirectValues& v,
                                int columns, float* sums) {
  int row = 0;
  for (; row + 8 <= rows; row += 8) {
    if (row == 0) {
      DirectValueRows<8, true>(p, lanes, v, columns, sums);
    } else {
      DirectValueRows<8, false>(p + row, lanes, v, columns, sums + row * columns);
    }
  }
  if (row + 4 <= rows) {
    if (row == 0) {
      DirectValueRows<4, true>(p, lanes, v, columns, sums);
    } else {
      DirectValueRows<4, false>(p + row, lanes, v, columns, sums + row * columns);
    }
    row += 4;
  }
  p += row;
  sums += row * columns;
  switch (rows - row) {  // prefetching again what other rows did costs little
    case 3:
      return DirectValueRows<3, true>(p, lanes, v, columns, sums);
    case 2:
      return DirectValueRows<2, true>(p, lanes, v, columns, sums);
    case 1:
      return DirectValueRows<1, true>(p, lanes, v, columns, sums);
    default:
      return;
  }
}

// SoftmaxBlock for tiles of four lanes, four keys at a time: the four partial weights of a row are
// the blocks of one vector.
template <bool kScaled>
HWY_INLINE bool SoftmaxOf4Rows(int begin, int end, float scale, const float* scores,
                               const float* value_scales, uint32_t* p, const TileState& state) {
  const FloatTag<16> df;
  const FloatTag<4> d4;
  const hn::Rebind<hwy::bfloat16_t, decltype(df)> dh;
  const hn::Rebind<uint16_t, decltype(df)> du16;
  const hn::Repartition<uint32_t, decltype(du16)> du;
  // [4 keys][4 rows] -> [2 pairs][4 rows][2 keys]
  alignas(32) static constexpr uint16_t kPairs[16] = {0, 4,  1, 5,  2,  6,  3,  7,
                                                      8, 12, 9, 13, 10, 14, 11, 15};
  const auto pairs = hn::SetTableIndices(du16, kPairs);
  // One of four scales for each block.
  alignas(64) static constexpr int32_t kBlocks[16] = {0,  0,  0,  0,  5,  5,  5,  5,
                                                      10, 10, 10, 10, 15, 15, 15, 15};
  const auto blocks = hn::SetTableIndices(df, kBlocks);
  const auto factor = hn::Set(df, scale);
  auto largest = hn::Load(df, scores + 4 * begin);
  for (int key = begin + 4; key < end; key += 4) {
    largest = hn::Max(largest, hn::Load(df, scores + 4 * key));
  }
  const auto largest4 =
      hn::Max(hn::Max(hn::ExtractBlock<0>(largest), hn::ExtractBlock<1>(largest)),
              hn::Max(hn::ExtractBlock<2>(largest), hn::ExtractBlock<3>(largest)));
  const auto old = hn::Load(d4, state.max);
  const auto max = hn::Max(old, hn::Mul(largest4, hn::Set(d4, scale)));
  const auto shift4 = Subtrahend(d4, max);
  const auto correction = Exp2(d4, hn::Sub(old, shift4));
  alignas(16) float shift_lanes[4];
  hn::Store(shift4, d4, shift_lanes);
  const auto shift = hn::LoadDup128(df, shift_lanes);
  auto sum = hn::Zero(df);
  for (int key = begin; key < end; key += 4) {
    const auto logit = hn::Mul(hn::Load(df, scores + 4 * key), factor);
    auto weight = Exp2(df, hn::Sub(logit, shift));
    sum = hn::Add(sum, weight);
    if constexpr (kScaled) {
      const auto scales = hn::TableLookupLanes(hn::LoadDup128(df, value_scales + key), blocks);
      weight = ScaledWeight(df, weight, logit, scales);
    }
    const auto halves = hn::BitCast(du16, hn::DemoteTo(dh, weight));
    hn::StoreU(hn::BitCast(du, hn::TableLookupLanes(halves, pairs)), du, p + 2 * key);
  }
  const auto added = hn::Add(hn::Add(hn::ExtractBlock<0>(sum), hn::ExtractBlock<1>(sum)),
                             hn::Add(hn::ExtractBlock<2>(sum), hn::ExtractBlock<3>(sum)));
  const auto weight = hn::MulAdd(hn::Load(d4, state.weight), correction, added);
  hn::Store(max, d4, state.max);
  hn::Store(weight, d4, state.weight);
  hn::Store(correction, d4, state.correction);
  return !hn::AllTrue(d4, hn::Eq(correction, hn::Set(d4, 1.0f)));
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // native bf16 dot products

#endif  // per-target include guard
