// The value product for the few rows of a decode, by bf16 dot products, over 8- and 4-bit values
// that are decoded in registers. Every result is the same chain as in values-inl.h, so the bits are
// those of prefill. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_CODED_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_CODED_VALUES_INL_H_
#undef RIFFLE_ATTENTION_CODED_VALUES_INL_H_
#else
#define RIFFLE_ATTENTION_CODED_VALUES_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>

#include "attention/decode_bf16-inl.h"
#include "attention/dot-inl.h"
#include "attention/small_m-inl.h"
#include "core/bf16_dot.h"
#include "core/load-inl.h"

#if RIFFLE_BF16_DOT && HWY_CAP_GE512

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Indices that bring the codes of an even and an odd key together so that, once they are decoded
// and their bytes interleaved within blocks of 128 bits, a vector has the pairs of 16 columns in
// order: in block b the codes of columns 4 b to 4 b + 3, then those of columns 16 + 4 b to
// 19 + 4 b. `odd` is the index of the odd key's first code, `column` the first column.
constexpr std::array<uint8_t, 64> PairCodeIndices(int column, int odd) {
  std::array<uint8_t, 64> indices{};
  for (int i = 0; i < 64; ++i) {
    const int block = i / 16;
    const int pair = i % 8 / 2;
    const int of_column = column + (i % 16 < 8 ? 0 : 16) + 4 * block + pair;
    indices[static_cast<size_t>(i)] = static_cast<uint8_t>(of_column + (i % 2 == 0 ? 0 : odd));
  }
  return indices;
}

// The same for codes of 4 bits, of which byte i of 16 has columns i and 16 + i: the lower byte of
// word 2 i is that of the even key, the lower byte of word 2 i + 1 that of the odd one. What is in
// the upper bytes does not matter.
constexpr std::array<uint8_t, 64> PairNibbleIndices() {
  std::array<uint8_t, 64> indices{};
  for (size_t i = 0; i < 64; ++i) {
    indices[i] = static_cast<uint8_t>(i / 4 + i / 2 % 2 * 16);
  }
  return indices;
}

using ByteIndices = decltype(hn::IndicesFromVec(Bytes64(), hn::Zero(Bytes64())));
HWY_INLINE ByteIndices LoadIndices(const std::array<uint8_t, 64>& indices) {
  return hn::SetTableIndices(Bytes64(), indices.data());
}

// How values of a code become operands. Load: 32 * kHalves columns of an even and an odd row, from
// the addresses given. ByteOf: the offset in a row of a column that is a multiple of 32.
template <RowCode kCode, int kHalves>
class CodedPairs {
  static constexpr RowCode kByteCode = kCode == RowCode::kQ8_0 ? RowCode::kI8 : kCode;
  static constexpr int kBlock32 =
      kCode == RowCode::kQ8_0 ? static_cast<int>(BlockBytes(KvFormat::kQ8_0)) : 32;
  static constexpr int kSkip = kCode == RowCode::kQ8_0 ? kBlockHeader<kCode> : 0;

 public:
  static constexpr int ByteOf(int column) { return column / 32 * kBlock32; }

  HWY_INLINE CodedPairs() : lower_(LoadIndices(kLower)), upper_(LoadIndices(kUpper)) {}

  HWY_INLINE void Load(const uint8_t* even, const uint8_t* odd, hn::Vec<Operands16>* x) const {
    const Bytes64 d;
    const hn::Half<Bytes64> half;
    if constexpr (kHalves == 2 && kCode != RowCode::kQ8_0) {
      const auto a = hn::LoadU(d, even);
      const auto b = hn::LoadU(d, odd);
      Decode(hn::TwoTablesLookupLanes(d, a, b, lower_), x);
      Decode(hn::TwoTablesLookupLanes(d, a, b, upper_), x + 2);
    } else {
      for (int i = 0; i < kHalves; ++i) {
        const int at = i * kBlock32 + kSkip;
        const auto both = hn::Combine(d, hn::LoadU(half, odd + at), hn::LoadU(half, even + at));
        Decode(hn::TableLookupLanes(both, lower_), x + 2 * i);
      }
    }
  }

 private:
  HWY_INLINE void Decode(hn::Vec<Bytes64> codes, hn::Vec<Operands16>* x) const {
    const Bytes64 d;
    const Operands16 dw;
    const BF16Bytes bytes = decode_(codes);
    x[0] = hn::BitCast(dw, hn::InterleaveLower(d, bytes.low, bytes.high));
    x[1] = hn::BitCast(dw, hn::InterleaveUpper(d, bytes.low, bytes.high));
  }

  static constexpr int kOdd = kHalves == 2 && kCode != RowCode::kQ8_0 ? 64 : 32;
  alignas(64) static constexpr auto kLower = PairCodeIndices(0, kOdd);
  alignas(64) static constexpr auto kUpper = PairCodeIndices(32, kOdd);

  const ByteDecoder<kByteCode> decode_;
  const ByteIndices lower_;
  const ByteIndices upper_;
};

template <RowCode kCode, int kHalves>
class NibblePairs {
  static constexpr int kBytes = static_cast<int>(BlockBytes(KvFormat::kQ4_0));

 public:
  static constexpr int ByteOf(int column) { return column / 32 * kBytes; }

  HWY_INLINE NibblePairs() : pairs_(LoadIndices(kPairs)) {}

  HWY_INLINE void Load(const uint8_t* even, const uint8_t* odd, hn::Vec<Operands16>* x) const {
    const Bytes64 d;
    const Operands16 dw;
    const hn::Repartition<uint16_t, Bytes64> d16;
    const hn::Half<Bytes64> half;
    const hn::Half<decltype(half)> quarter;
    for (int i = 0; i < kHalves; ++i) {
      const int at = i * kBytes + kBlockHeader<kCode>;
      const auto both =
          hn::Combine(half, hn::LoadU(quarter, odd + at), hn::LoadU(quarter, even + at));
      const auto codes =
          hn::BitCast(d16, hn::TableLookupLanes(hn::ZeroExtendVector(d, both), pairs_));
      x[2 * i] = hn::BitCast(dw, decode_(codes));
      x[2 * i + 1] = hn::BitCast(dw, decode_(hn::ShiftRight<4>(codes)));
    }
  }

 private:
  alignas(64) static constexpr auto kPairs = PairNibbleIndices();

  const NibbleWordDecoder<kCode> decode_;
  const ByteIndices pairs_;
};
template <int kHalves>
class CodedPairs<RowCode::kQ4_0, kHalves> : public NibblePairs<RowCode::kQ4_0, kHalves> {
 public:
  HWY_INLINE CodedPairs() {}
};
template <int kHalves>
class CodedPairs<RowCode::kIQ4NL, kHalves> : public NibblePairs<RowCode::kIQ4NL, kHalves> {
 public:
  HWY_INLINE CodedPairs() {}
};

// InPlaceValueKernel over codes, for up to kRows rows. Lanes without a row are computed like the
// others, and their sums dropped.
//   p  probabilities for the first 32 columns; upper_p: for the others, if there are any
template <RowCode kCode, int kRows, int kHalves, bool kSameP>
HWY_INLINE void CodedValueKernel(const uint32_t* HWY_RESTRICT p, const uint32_t* upper_p, int lanes,
                                 int rows, const InPlaceValues& v, int column,
                                 float* HWY_RESTRICT sums) {
  using Pairs = CodedPairs<kCode, kHalves>;
  const FloatTag<16> df;
  constexpr int kVecs = 2 * kHalves;
  const Pairs pairs;
  hn::Vec<decltype(df)> sum[kRows][kVecs];
  for (int row = 0; row < kRows; ++row) {
    // Masked rather than `if`: GCC would keep the sums of both branches in memory.
    const auto known = hn::FirstN(df, v.overwrite_sums || row >= rows ? 0 : 16);
    for (int i = 0; i < kVecs; ++i) {
      sum[row][i] = hn::MaskedLoad(known, df, sums + HWY_MIN(row, rows - 1) * v.columns + i * 16);
    }
  }
  const int at = Pairs::ByteOf(column);
  const int end = Pairs::ByteOf(column + 32 * kHalves);
  // One prefetch per cache line, made with the columns whose bytes contain its start.
  const int line = (at + 63) / 64 * 64;
  const int lines = (end - line + 63) / 64;
  HWY_DASSERT(lines <= 2);
  for (int key = 0; key < v.keys; key += 2, p += lanes, upper_p += lanes) {
    hn::Vec<Operands16> x[kVecs];
    pairs.Load(v.rows[key] + at, v.rows[key + 1] + at, x);
    if (lines > 0) {
      PrefetchAt(v.ahead.rows[key], line);
      PrefetchAt(v.ahead.rows[key + 1], line);
    }
    if (lines > 1) {
      PrefetchAt(v.ahead.rows[key], line + 64);
      PrefetchAt(v.ahead.rows[key + 1], line + 64);
    }
    for (int row = 0; row < kRows; ++row) {
      for (int i = 0; i < kVecs; ++i) {
        const uint32_t of_row = kSameP || i < 2 ? p[row] : upper_p[row];
        sum[row][i] = BF16Math::Step(df, of_row, x[i], sum[row][i]);
      }
    }
  }
  for (int row = 0; row < kRows && row < rows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      hn::Store(sum[row][i], df, sums + row * v.columns + i * 16);
    }
  }
}

// sums[row][column] += p * v for up to 8 rows.
//   p  [groups of columns][kBlock / 2][lanes], lanes 4 or 8
template <RowCode kCode>
void AddCodedValues(const uint32_t* p, int lanes, int rows, const InPlaceValues& v, float* sums) {
  HWY_DASSERT(lanes == 4 || lanes == 8);
  const auto probabilities_of = [&](int column) {
    return p + (column - v.begin_column) / v.group_columns * (kBlock / 2 * lanes);
  };
  int column = v.begin_column;
  if (lanes == 8) {
    for (; column < v.end_column; column += 32) {
      CodedValueKernel<kCode, 8, 1, true>(probabilities_of(column), p, lanes, rows, v, column,
                                          sums + column);
    }
    return;
  }
  for (; column + 64 <= v.end_column; column += 64) {
    const uint32_t* lower = probabilities_of(column);
    const uint32_t* upper = probabilities_of(column + 32);
    if (lower == upper && !IsBlocks(kCode)) {
      CodedValueKernel<kCode, 4, 2, true>(lower, p, lanes, rows, v, column, sums + column);
    } else {
      CodedValueKernel<kCode, 4, 2, false>(lower, upper, lanes, rows, v, column, sums + column);
    }
  }
  if (column < v.end_column) {
    CodedValueKernel<kCode, 4, 1, true>(probabilities_of(column), p, lanes, rows, v, column,
                                        sums + column);
  }
}

using CodedValuesKernel = void (*)(const uint32_t* p, int lanes, int rows, const InPlaceValues& v,
                                   float* sums);
// Null for codes that are decoded into memory first.
inline CodedValuesKernel FindCodedValuesKernel(RowCode code) {
  switch (code) {
    case RowCode::kE4M3:
      return &AddCodedValues<RowCode::kE4M3>;
    case RowCode::kE5M2:
      return &AddCodedValues<RowCode::kE5M2>;
    case RowCode::kI8:
      return &AddCodedValues<RowCode::kI8>;
    case RowCode::kQ8_0:
      return &AddCodedValues<RowCode::kQ8_0>;
    case RowCode::kQ4_0:
      return &AddCodedValues<RowCode::kQ4_0>;
    case RowCode::kIQ4NL:
      return &AddCodedValues<RowCode::kIQ4NL>;
    default:
      return nullptr;
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // native bf16 dot products, vectors of 512 bits

#endif  // per-target include guard
