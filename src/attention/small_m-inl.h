// Kernels for the few rows of a decode: keys and values are read in place, or where they have just
// been decoded. Every result is the same chain of steps as in dot-inl.h, so the bits are those of
// prefill. For vectors of 512 bits. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_SMALL_M_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_SMALL_M_INL_H_
#undef RIFFLE_ATTENTION_SMALL_M_INL_H_
#else
#define RIFFLE_ATTENTION_SMALL_M_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

#include "attention/decode_f32-inl.h"
#include "attention/dot-inl.h"
#include "core/bf16_dot.h"
#include "core/load-inl.h"

#if HWY_CAP_GE512

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::LoadAny;

// Four operands, from `w` on, of each of 16 / kRows keys, kRows / 4 times:
// [keys][kRows / 4][4 operands].
template <int kRows, class DW>
HWY_INLINE hn::Vec<DW> LoadKeys(DW dw, const uint8_t* const* rows, int w) {
  const hn::Repartition<uint8_t, DW> d8;
  const auto load = [&](int key) HWY_ATTR {
    // volatile forces a reload: otherwise the compiler hoists 16 pointers and spills them into
    // vector registers.
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

// An operand of kRows rows of q, once for every key of a vector.
template <int kRows, class DW>
HWY_INLINE hn::Vec<DW> LoadRows(DW dw, const hn::TFromD<DW>* q) {
  if constexpr (kRows == 16) {
    return hn::Load(dw, q);
  } else if constexpr (kRows == 8) {
    const auto half = hn::Load(hn::Half<DW>(), q);
    return hn::Combine(dw, half, half);
  } else {
    return hn::LoadDup128(dw, q);
  }
}

// One step of 16 chains: sum + k * x.
HWY_INLINE hn::Vec<FloatTag<16>> VectorStep(F32Math, hn::Vec<FloatTag<16>> k,
                                            hn::Vec<FloatTag<16>> x, hn::Vec<FloatTag<16>> sum) {
  return hn::MulAdd(k, x, sum);
}
#if RIFFLE_BF16_DOT
using Operands16 = hn::CappedTag<uint32_t, 16>;
HWY_INLINE hn::Vec<FloatTag<16>> VectorStep(BF16Math, hn::Vec<Operands16> k, hn::Vec<Operands16> x,
                                            hn::Vec<FloatTag<16>> sum) {
  const FloatTag<16> df;
  const hn::Repartition<hwy::bfloat16_t, decltype(df)> dbf;
  auto unused = hn::Zero(df);
  return hn::ReorderWidenMulAccumulate(df, hn::BitCast(dbf, k), hn::BitCast(dbf, x), sum, unused);
}
#endif

// Keys in place, and which operands of a row are multiplied: [begin, end), multiples of 4.
struct KeyRows {
  const uint8_t* const* rows;
  int begin;
  int end;
};

// Scores of kVecs * 16 / kRows keys, in vectors of [keys][kRows]: four operands of as many keys as
// fit are loaded side by side, then each is repeated over the rows of its key, which costs nothing
// beside dot products. (A vector of 4 or 8 rows and a broadcast from memory per key took 2 to 2.5
// times as long: Zen 4 runs two short dot products a cycle but loads fewer than two operands.)
// Eight vectors take a step in turn, since a product takes six cycles.
//   q  [operands][kRows]; scores [keys][kRows], aligned
template <class Math, int kRows, int kVecs>
HWY_INLINE void InPlaceScoreKernel(const typename Math::Operand* HWY_RESTRICT q, const KeyRows& k,
                                   float* HWY_RESTRICT scores, const RowsToPrefetch& ahead) {
  const FloatTag<16> df;
  const hn::Rebind<typename Math::Operand, decltype(df)> dw;
  constexpr int kKeys = 16 / kRows;             // of a vector
  constexpr int kPrefetch = kVecs * kKeys / 4;  // rows; four operands are a fourth of a line
  hn::Vec<decltype(df)> sum[kVecs];
  for (int i = 0; i < kVecs; ++i) {
    sum[i] = hn::Zero(df);
  }
  q += k.begin * kRows;
  for (int w = k.begin; w < k.end; w += 4, q += 4 * kRows) {
    for (int i = 0; i < kPrefetch; ++i) {
      const int row = (w >> 2 & 3) * kPrefetch + i;
      PrefetchAt(ahead.rows[row], (w >> 4) * ahead.step);
    }
    hn::Vec<decltype(dw)> x[kVecs];
    for (int i = 0; i < kVecs; ++i) {
      x[i] = LoadKeys<kRows>(dw, k.rows + i * kKeys, w);
    }
    const auto step = [&](auto operand) HWY_ATTR {
      constexpr int kOperand = decltype(operand)::value;
      const auto y = LoadRows<kRows>(dw, q + kOperand * kRows);
      for (int i = 0; i < kVecs; ++i) {
        sum[i] = VectorStep(Math(), hn::Broadcast<kOperand>(x[i]), y, sum[i]);
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

// scores[key][row] of 16 keys = sum[row]. Block b of a vector has the keys b, 4 + b, 8 + b and
// 12 + b.
template <int kRows>
HWY_INLINE void StoreLanes(const hn::Vec<FloatTag<16>>* sum, float* HWY_RESTRICT scores) {
  const FloatTag<16> df;
  const hn::Repartition<double, decltype(df)> dd;
  const FloatTag<4> d4;
  const auto twice = [&](auto x) HWY_ATTR { return hn::BitCast(dd, x); };
  for (int row = 0; row < kRows; row += 4) {
    const auto low01 = twice(hn::InterleaveLower(df, sum[row], sum[row + 1]));
    const auto low23 = twice(hn::InterleaveLower(df, sum[row + 2], sum[row + 3]));
    const auto high01 = twice(hn::InterleaveUpper(df, sum[row], sum[row + 1]));
    const auto high23 = twice(hn::InterleaveUpper(df, sum[row + 2], sum[row + 3]));
    const hn::Vec<FloatTag<16>> four_keys[] = {
        hn::BitCast(df, hn::InterleaveLower(dd, low01, low23)),
        hn::BitCast(df, hn::InterleaveUpper(dd, low01, low23)),
        hn::BitCast(df, hn::InterleaveLower(dd, high01, high23)),
        hn::BitCast(df, hn::InterleaveUpper(dd, high01, high23))};
    for (int i = 0; i < 4; ++i) {
      float* to = scores + 4 * i * kRows + row;
      if constexpr (kRows == 4) {
        hn::Store(four_keys[i], df, to);
      } else {
        hn::Store(hn::ExtractBlock<0>(four_keys[i]), d4, to);
        hn::Store(hn::ExtractBlock<1>(four_keys[i]), d4, to + kRows);
        hn::Store(hn::ExtractBlock<2>(four_keys[i]), d4, to + 2 * kRows);
        hn::Store(hn::ExtractBlock<3>(four_keys[i]), d4, to + 3 * kRows);
      }
    }
  }
}

// Scores of 32 keys against kRows rows of q, up to four. Four operands of 16 keys are transposed in
// registers, so that lanes are keys. With one row this takes a fourth of the products of
// InPlaceScoreKernel, which has lanes for four, and always half of the shuffles.
//   q  [operands][4]; scores [keys][4], aligned
template <int kRows>
HWY_INLINE void TransposedScores(const float* HWY_RESTRICT q, const KeyRows& k,
                                 float* HWY_RESTRICT scores, const RowsToPrefetch& ahead) {
  const FloatTag<16> df;
  constexpr int kSets = 2;
  constexpr int kPrefetch = 4 * kSets;  // rows; four operands are a fourth of a line
  hn::Vec<decltype(df)> sum[kSets][4];  // rows that do not exist stay 0
  for (auto& set : sum) {
    for (auto& s : set) {
      s = hn::Zero(df);
    }
  }
  q += k.begin * 4;
  for (int w = k.begin; w < k.end; w += 4, q += 16) {
    for (int i = 0; i < kPrefetch; ++i) {
      PrefetchAt(ahead.rows[(w >> 2 & 3) * kPrefetch + i], (w >> 4) * ahead.step);
    }
    for (int set = 0; set < kSets; ++set) {
      const auto keys = [&](int first)
                            HWY_ATTR { return LoadKeys<4>(df, k.rows + 16 * set + first, w); };
      const auto keys0 = keys(0);
      const auto keys4 = keys(4);
      const auto keys8 = keys(8);
      const auto keys12 = keys(12);
      const auto even01 = hn::InterleaveLower(df, keys0, keys8);  // operands 0 and 1
      const auto odd01 = hn::InterleaveLower(df, keys4, keys12);
      const auto even23 = hn::InterleaveUpper(df, keys0, keys8);
      const auto odd23 = hn::InterleaveUpper(df, keys4, keys12);
      const hn::Vec<decltype(df)> x[] = {
          hn::InterleaveLower(df, even01, odd01), hn::InterleaveUpper(df, even01, odd01),
          hn::InterleaveLower(df, even23, odd23), hn::InterleaveUpper(df, even23, odd23)};
      for (int operand = 0; operand < 4; ++operand) {
        for (int row = 0; row < kRows; ++row) {
          sum[set][row] = hn::MulAdd(x[operand], hn::Set(df, q[4 * operand + row]), sum[set][row]);
        }
      }
    }
  }
  for (int set = 0; set < kSets; ++set) {
    StoreLanes<4>(sum[set], scores + 64 * set);
  }
}

HWY_INLINE void TransposedScoresOf(int rows, const float* q, const KeyRows& k, float* scores,
                                   const RowsToPrefetch& ahead) {
  if (rows == 1) {
    TransposedScores<1>(q, k, scores, ahead);
  } else if (rows == 2) {
    TransposedScores<2>(q, k, scores, ahead);
  } else if (rows == 3) {
    TransposedScores<3>(q, k, scores, ahead);
  } else {
    TransposedScores<4>(q, k, scores, ahead);
  }
}

// Scores of `keys` keys, a multiple of 16, against a tile of up to 16 lanes, `rows` of them used.
template <class Math>
HWY_INLINE void InPlaceScores(const typename Math::Operand* q, int lanes, int rows, KeyRows k,
                              int keys, float* scores, RowsToPrefetch ahead) {
  while (keys > 0) {
    int done = 16;
    if (lanes == 4 && keys >= 32) {
      if constexpr (Math::kPerOperand == 1) {
        TransposedScoresOf(rows, q, k, scores, ahead);
      } else {
        InPlaceScoreKernel<Math, 4, 8>(q, k, scores, ahead);
      }
      done = 32;
    } else if (lanes == 4) {
      InPlaceScoreKernel<Math, 4, 4>(q, k, scores, ahead);
    } else if (lanes == 8) {
      InPlaceScoreKernel<Math, 8, 8>(q, k, scores, ahead);
    } else {
      InPlaceScoreKernel<Math, 16, 8>(q, k, scores, ahead);
      done = 8;
    }
    keys -= done;
    k.rows += done;
    ahead.rows += done;
    scores += done * lanes;
  }
}

// Values that kernels read row by row, and rows to prefetch meanwhile.
struct InPlaceValues {
  const uint8_t* const* rows;  // [keys]
  int keys;                    // even
  bool overwrite_sums;         // sums are written, not added to
  int columns;                 // of a row of sums
  int begin_column;            // of them [begin_column, end_column), multiples of 32
  int end_column;              // (16 with F32Math)
  int group_columns;     // columns that have the same probabilities, from begin_column on; see
                         // TileSoftmax::ForColumnGroups
  RowsToPrefetch ahead;  // rows [keys]; step: bytes of 32 columns
};

// Loads a step of values: the next keys' kVecs vectors of columns from `column` on.
template <class Math, RowCode kCode, int kVecs>
struct ValueLoader;

template <RowCode kCode, int kVecs>
struct ValueLoader<F32Math, kCode, kVecs> {
  hn::Vec<FloatTag<16>> x[kVecs];

  HWY_INLINE void Load(const uint8_t* const* rows, int column) {
    for (int i = 0; i < kVecs; ++i) {
      x[i] =
          LoadElements<kCode>(FloatTag<16>(), rows[0] + kElementBytes<kCode> * (column + 16 * i));
    }
  }
};

#if RIFFLE_BF16_DOT
template <int kVecs>
struct ValueLoader<BF16Math, RowCode::kBF16, kVecs> {
  hn::Vec<Operands16> x[kVecs];

  HWY_INLINE void Load(const uint8_t* const* rows, int column) {
    const hn::CappedTag<uint16_t, 32> dh;
    const Operands16 dw;
    for (int i = 0; i < kVecs; i += 2) {
      const auto even = LoadAny(dh, rows[0] + 2 * column + 32 * i);
      const auto odd = LoadAny(dh, rows[1] + 2 * column + 32 * i);
      x[i] = hn::BitCast(dw, hn::InterleaveWholeLower(dh, even, odd));
      x[i + 1] = hn::BitCast(dw, hn::InterleaveWholeUpper(dh, even, odd));
    }
  }
};
#endif

// ValueKernel over InPlaceValues: kRows rows, 16 * kVecs columns.
//   p  [keys / kPerOperand][lanes]
template <class Math, RowCode kCode, int kRows, int kVecs, bool kAhead>
HWY_INLINE void InPlaceValueKernel(const typename Math::Operand* HWY_RESTRICT p, int lanes,
                                   const InPlaceValues& v, int column, float* HWY_RESTRICT sums) {
  const FloatTag<16> df;
  constexpr int kHalves = (kVecs + 1) / 2;  // that ahead.step counts
  hn::Vec<decltype(df)> sum[kRows][kVecs];
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      sum[row][i] = v.overwrite_sums ? hn::Zero(df) : hn::Load(df, sums + row * v.columns + i * 16);
    }
  }
  const int ahead_offset = column / 32 * v.ahead.step;
  for (int key = 0; key < v.keys; key += Math::kPerOperand, p += lanes) {
    ValueLoader<Math, kCode, kVecs> values;
    values.Load(v.rows + key, column);
    if constexpr (kAhead) {
      for (int i = 0; i < Math::kPerOperand; ++i) {
        for (int half = 0; half < kHalves; ++half) {
          PrefetchAt(v.ahead.rows[key + i], ahead_offset + half * v.ahead.step);
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int i = 0; i < kVecs; ++i) {
        sum[row][i] = Math::Step(df, p[row], values.x[i], sum[row][i]);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      hn::Store(sum[row][i], df, sums + row * v.columns + i * 16);
    }
  }
}

// The columns of up to four rows, or of eight.
template <class Math, RowCode kCode, int kRows, bool kAhead>
HWY_INLINE void InPlaceValueRows(const typename Math::Operand* p, int lanes, const InPlaceValues& v,
                                 float* sums) {
  constexpr int kHalves = kRows > 4 ? 1 : 2;
  int column = v.begin_column;
  for (; column + 32 * kHalves <= v.end_column; column += 32 * kHalves) {
    InPlaceValueKernel<Math, kCode, kRows, 2 * kHalves, kAhead>(p, lanes, v, column, sums + column);
  }
  if (kHalves == 2 && column + 32 <= v.end_column) {
    InPlaceValueKernel<Math, kCode, kRows, 2, kAhead>(p, lanes, v, column, sums + column);
    column += 32;
  }
  if constexpr (Math::kPerOperand == 1) {
    if (column < v.end_column) {
      InPlaceValueKernel<Math, kCode, kRows, 1, kAhead>(p, lanes, v, column, sums + column);
    }
  }
}

// sums[row][column] += p * v; the first rows prefetch.
//   p  [v.keys / kPerOperand][lanes]
template <class Math, RowCode kCode>
HWY_INLINE void AddInPlaceValues(const typename Math::Operand* p, int lanes, int rows,
                                 const InPlaceValues& v, float* sums) {
  int row = 0;
  for (; row + 8 <= rows; row += 8) {
    if (row == 0) {
      InPlaceValueRows<Math, kCode, 8, true>(p, lanes, v, sums);
    } else {
      InPlaceValueRows<Math, kCode, 8, false>(p + row, lanes, v, sums + row * v.columns);
    }
  }
  if (row + 4 <= rows) {
    if (row == 0) {
      InPlaceValueRows<Math, kCode, 4, true>(p, lanes, v, sums);
    } else {
      InPlaceValueRows<Math, kCode, 4, false>(p + row, lanes, v, sums + row * v.columns);
    }
    row += 4;
  }
  p += row;
  sums += row * v.columns;
  switch (rows - row) {  // prefetching again what other rows did costs little
    case 3:
      return InPlaceValueRows<Math, kCode, 3, true>(p, lanes, v, sums);
    case 2:
      return InPlaceValueRows<Math, kCode, 2, true>(p, lanes, v, sums);
    case 1:
      return InPlaceValueRows<Math, kCode, 1, true>(p, lanes, v, sums);
    default:
      return;
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // vectors of 512 bits

#endif  // per-target include guard
