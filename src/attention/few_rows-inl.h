// Kernels for the few rows of a decode where the target has bf16 dot products: they read keys and
// values where they lie. Every result is the same chain of the same steps as in dot-inl.h, so the
// bits are those of prefill. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_FEW_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_FEW_ROWS_INL_H_
#undef RIFFLE_ATTENTION_FEW_ROWS_INL_H_
#else
#define RIFFLE_ATTENTION_FEW_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include "attention/dot-inl.h"
#include "attention/kv_block-inl.h"
#include "attention/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86

// Scores of 16 keys against up to four rows, in vectors of [4 keys][4 rows]: four words of four keys
// are loaded side by side, and each word is repeated over the rows of its key. A vector of rows
// alone, of four lanes, took twice the time.
//   q  [words][4]; scores [16][4], aligned; words is a multiple of 4
HWY_INLINE void ScoresOf4Rows(const uint32_t* HWY_RESTRICT q, const KvRows& keys, int words,
                              float* HWY_RESTRICT scores, const Ahead& ahead) {
  const FloatTag<16> df;
  const hn::CappedTag<uint32_t, 16> dw;
  const hn::Repartition<uint8_t, decltype(dw)> d8;
  const hn::Repartition<hwy::bfloat16_t, decltype(df)> dbf;
  const auto block1 = hn::And(hn::FirstN(dw, 8), hn::Not(hn::FirstN(dw, 4)));
  const auto block2 = hn::And(hn::FirstN(dw, 12), hn::Not(hn::FirstN(dw, 8)));
  const auto block3 = hn::Not(hn::FirstN(dw, 12));
  const auto load = [&](int key, int w) HWY_ATTR {
    return hn::BitCast(dw, hn::LoadDup128(d8, keys.row[key] + 4 * w));
  };
  auto unused = hn::Zero(df);
  hn::Vec<decltype(df)> sum[4];
  for (int g = 0; g < 4; ++g) {
    sum[g] = hn::Zero(df);
  }
  for (int w = 0; w < words; w += 4) {
    const hn::Vec<decltype(dw)> x[4] = {
        hn::LoadDup128(dw, q + 4 * w), hn::LoadDup128(dw, q + 4 * w + 4),
        hn::LoadDup128(dw, q + 4 * w + 8), hn::LoadDup128(dw, q + 4 * w + 12)};
    for (int i = 0; i < 4; ++i) {
      __builtin_prefetch(ahead.rows[(w + i) & 15] + (w >> 4) * ahead.step, 0, 2);
    }
    for (int g = 0; g < 4; ++g) {
      auto k = load(4 * g, w);
      k = hn::IfThenElse(block1, load(4 * g + 1, w), k);
      k = hn::IfThenElse(block2, load(4 * g + 2, w), k);
      k = hn::IfThenElse(block3, load(4 * g + 3, w), k);
      const auto step = [&](auto word, auto row) HWY_ATTR {
        sum[g] = hn::ReorderWidenMulAccumulate(df, hn::BitCast(dbf, word), hn::BitCast(dbf, row),
                                               sum[g], unused);
      };
      step(hn::Broadcast<0>(k), x[0]);
      step(hn::Broadcast<1>(k), x[1]);
      step(hn::Broadcast<2>(k), x[2]);
      step(hn::Broadcast<3>(k), x[3]);
    }
  }
  for (int g = 0; g < 4; ++g) {
    hn::Store(sum[g], df, scores + 16 * g);
  }
}

// Scores of 16 keys against one vector of rows.
//   q  [words][lanes of df]; scores [16][lanes of df], aligned; words is a multiple of 4
template <class DF>
HWY_INLINE void ScoresOfVector(DF df, const uint32_t* HWY_RESTRICT q, const KvRows& keys, int words,
                               float* HWY_RESTRICT scores, const Ahead& ahead) {
  const hn::Rebind<uint32_t, DF> dw;
  constexpr int kN = static_cast<int>(hn::MaxLanes(DF()));
  hn::Vec<DF> sum[kGroupKeys];
  for (int key = 0; key < kGroupKeys; ++key) {
    sum[key] = hn::Zero(df);
  }
  for (int w = 0; w < words; w += 4, q += 4 * kN) {
    const hn::Vec<decltype(dw)> x[4] = {hn::Load(dw, q), hn::Load(dw, q + kN),
                                        hn::Load(dw, q + 2 * kN), hn::Load(dw, q + 3 * kN)};
    for (int i = 0; i < 4; ++i) {
      __builtin_prefetch(ahead.rows[(w + i) & 15] + (w >> 4) * ahead.step, 0, 2);
    }
    for (int key = 0; key < kGroupKeys; ++key) {
      const uint8_t* row = keys.row[key] + 4 * w;
      for (int i = 0; i < 4; ++i) {
        uint32_t word;
        std::memcpy(&word, row + 4 * i, sizeof(word));
        sum[key] = BF16Math::Step(df, word, x[i], sum[key]);
      }
    }
  }
  for (int key = 0; key < kGroupKeys; ++key) {
    hn::Store(sum[key], df, scores + key * kN);
  }
}

HWY_INLINE void DirectScores(const uint32_t* q, int lanes, const KvRows& keys, int words,
                             float* scores, const Ahead& ahead) {
  if (lanes == 4) {
    ScoresOf4Rows(q, keys, words, scores, ahead);
  } else if (lanes == 8) {
    ScoresOfVector(FloatTag<8>(), q, keys, words, scores, ahead);
  } else {
    ScoresOfVector(FloatTag<16>(), q, keys, words, scores, ahead);
  }
}

// Values where they lie, and rows to prefetch meanwhile.
struct DirectValues {
  const uint8_t* const* rows;  // [keys]
  const uint8_t* const* ahead;  // [keys]
  int keys;                    // even
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
      sum[row][i] = hn::Load(df, sums + row * columns + i * 16);
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
HWY_INLINE bool SoftmaxOf4Rows(int begin, int end, float scale, const float* scores, uint32_t* p,
                               const TileState& state) {
  const FloatTag<16> df;
  const FloatTag<4> d4;
  const hn::Rebind<hwy::bfloat16_t, decltype(df)> dh;
  const hn::Rebind<uint16_t, decltype(df)> du16;
  const hn::Repartition<uint32_t, decltype(du16)> du;
  // [4 keys][4 rows] -> [2 pairs][4 rows][2 keys]
  alignas(32) static constexpr uint16_t kPairs[16] = {0, 4,  1, 5,  2,  6,  3,  7,
                                                      8, 12, 9, 13, 10, 14, 11, 15};
  const auto pairs = hn::SetTableIndices(du16, kPairs);
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
    const auto weight = Exp2(df, hn::Sub(logit, shift));
    sum = hn::Add(sum, weight);
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

#endif

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
