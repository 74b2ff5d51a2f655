// Decodes rows of codes that are exact in bf16 to bf16, without their scales. Included once per
// SIMD target.
#if defined(RIFFLE_ATTENTION_DECODE_BF16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_DECODE_BF16_INL_H_
#undef RIFFLE_ATTENTION_DECODE_BF16_INL_H_
#else
#define RIFFLE_ATTENTION_DECODE_BF16_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>
#include <cstring>

#include "attention/decode_f32-inl.h"
#include "attention/dot-inl.h"
#include "attention/kv_rows.h"
#include "core/bf16_dot.h"
#include "core/load-inl.h"

#if RIFFLE_BF16_DOT

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::LoadAny;

using Bytes64 = hn::CappedTag<uint8_t, 64>;

// Whether kernels here decode rows of this code to bf16. Table lookups need vectors of 512 bits.
constexpr bool DecodesToBF16(RowCode code) {
  return code == RowCode::kBF16 || (HWY_CAP_GE512 && ExactInBF16(code));
}

#if HWY_CAP_GE512
// The bits of magnitude * 2^exponent as bf16; exact for magnitudes of up to 8 bits.
constexpr uint16_t BF16BitsOf(int magnitude, int exponent) {
  if (magnitude == 0) {
    return 0;
  }
  int bits = 0;
  while (magnitude >> (bits + 1) != 0) {
    ++bits;
  }
  return static_cast<uint16_t>((127 + bits + exponent) << 7 | ((magnitude << (7 - bits)) & 0x7f));
}

// The magnitude, as bf16, of the code with these 7 lower bits; the highest bit is the sign. For
// int8 these are the magnitude's bits; 0 means 128: only -128 uses that entry (ByteDecoder).
constexpr uint16_t MagnitudeAsBF16(RowCode code, int bits) {
  if (code == RowCode::kI8) {
    return BF16BitsOf(bits == 0 ? 128 : bits, 0);
  }
  const int places = code == RowCode::kE4M3 ? 3 : 2;
  const int bias = code == RowCode::kE4M3 ? 7 : 15;
  const int exponent = bits >> places;
  const int fraction = bits & ((1 << places) - 1);
  if (code == RowCode::kE4M3 ? bits == 0x7f : exponent == 31) {
    return code == RowCode::kE5M2 && fraction == 0 ? 0x7f80 : 0x7fc0;
  }
  return exponent == 0 ? BF16BitsOf(fraction, 1 - bias - places)
                       : BF16BitsOf(fraction | 1 << places, exponent - bias - places);
}

// The lower and the upper bytes of the bf16 of 128 magnitudes: two lookups in 128 bytes each decode
// 64 codes.
struct MagnitudeBytes {
  alignas(64) std::array<uint8_t, 128> low{};
  alignas(64) std::array<uint8_t, 128> high{};
};
constexpr MagnitudeBytes MakeMagnitudeBytes(RowCode code) {
  MagnitudeBytes bytes;
  for (size_t i = 0; i < 128; ++i) {
    const uint16_t bits = MagnitudeAsBF16(code, static_cast<int>(i));
    bytes.low[i] = static_cast<uint8_t>(bits);
    bytes.high[i] = static_cast<uint8_t>(bits >> 8);
  }
  return bytes;
}
template <RowCode kCode>
inline constexpr MagnitudeBytes kMagnitudeBytes = MakeMagnitudeBytes(kCode);

// The lower and the upper bytes of 64 bf16.
struct BF16Bytes {
  hn::Vec<Bytes64> low;
  hn::Vec<Bytes64> high;
};

// 64 codes of 8 bits to bf16: two lookups of bytes in the tables of 128 magnitudes.
template <RowCode kCode>
class ByteDecoder {
 public:
  HWY_INLINE ByteDecoder()
      : low0_(hn::Load(Bytes64(), kMagnitudeBytes<kCode>.low.data())),
        low1_(hn::Load(Bytes64(), kMagnitudeBytes<kCode>.low.data() + 64)),
        high0_(hn::Load(Bytes64(), kMagnitudeBytes<kCode>.high.data())),
        high1_(hn::Load(Bytes64(), kMagnitudeBytes<kCode>.high.data() + 64)) {}

  HWY_INLINE BF16Bytes operator()(hn::Vec<Bytes64> codes) const {
    const Bytes64 d;
    // The lookup ignores the highest bit of an index; IndicesFromVec would assert that it is 0.
    using Indices = hn::Indices512<uint8_t>;
    if constexpr (kCode == RowCode::kI8) {
      const hn::RebindToSigned<Bytes64> di;
      const Indices magnitudes{hn::BitCast(d, hn::Abs(hn::BitCast(di, codes))).raw};
      // -128 has no magnitude of 7 bits: it finds entry 0, which holds 128. Code 0 must not.
      const auto high = hn::IfThenElseZero(hn::Ne(codes, hn::Zero(d)),
                                           hn::TwoTablesLookupLanes(d, high0_, high1_, magnitudes));
      return {hn::TwoTablesLookupLanes(d, low0_, low1_, magnitudes),
              hn::OrAnd(high, codes, hn::Set(d, 0x80))};
    } else {
      const Indices index{codes.raw};
      return {
          hn::TwoTablesLookupLanes(d, low0_, low1_, index),
          hn::OrAnd(hn::TwoTablesLookupLanes(d, high0_, high1_, index), codes, hn::Set(d, 0x80))};
    }
  }

 private:
  hn::Vec<Bytes64> low0_, low1_, high0_, high1_;
};

// 64 codes to 128 bytes.
template <RowCode kCode>
HWY_INLINE void DecodeBytes(hn::Vec<Bytes64> codes, uint8_t* HWY_RESTRICT to) {
  const Bytes64 d;
  const BF16Bytes bytes = ByteDecoder<kCode>()(codes);
  hn::StoreU(hn::InterleaveWholeLower(d, bytes.low, bytes.high), d, to);
  hn::StoreU(hn::InterleaveWholeUpper(d, bytes.low, bytes.high), d, to + 64);
}

// The values of the 4- or 5-bit codes of a block, as bf16.
struct BlockElementTable {
  alignas(64) std::array<uint16_t, 32> bits{};
};
constexpr BlockElementTable MakeBlockElementTable(RowCode code) {
  BlockElementTable table;
  for (int i = 0; i < 32; ++i) {
    const int value = code == RowCode::kIQ4NL  ? kIQ4NLElements[i % 16]
                      : code == RowCode::kQ4_0 ? i % 16 - 8
                                               : i - 16;
    const int magnitude = value < 0 ? -value : value;
    table.bits[static_cast<size_t>(i)] =
        static_cast<uint16_t>(BF16BitsOf(magnitude, 0) | (value < 0 ? 0x8000 : 0));
  }
  return table;
}
template <RowCode kCode>
inline constexpr BlockElementTable kBlockElementTable = MakeBlockElementTable(kCode);

// The lower and the upper bytes of the bf16 of the 16 codes of 4 bits.
struct NibbleBytes {
  alignas(16) std::array<uint8_t, 16> low{};
  alignas(16) std::array<uint8_t, 16> high{};
};
constexpr NibbleBytes MakeNibbleBytes(RowCode code) {
  NibbleBytes bytes;
  const BlockElementTable table = MakeBlockElementTable(code);
  for (size_t i = 0; i < 16; ++i) {
    bytes.low[i] = static_cast<uint8_t>(table.bits[i]);
    bytes.high[i] = static_cast<uint8_t>(table.bits[i] >> 8);
  }
  return bytes;
}
template <RowCode kCode>
inline constexpr NibbleBytes kNibbleBytes = MakeNibbleBytes(kCode);

// 64 codes of 4 bits, one a byte, to bf16.
template <RowCode kCode>
class NibbleDecoder {
 public:
  HWY_INLINE NibbleDecoder()
      : low_(hn::LoadDup128(Bytes64(), kNibbleBytes<kCode>.low.data())),
        high_(hn::LoadDup128(Bytes64(), kNibbleBytes<kCode>.high.data())) {}

  HWY_INLINE BF16Bytes operator()(hn::Vec<Bytes64> codes) const {
    return {hn::TableLookupBytes(low_, codes), hn::TableLookupBytes(high_, codes)};
  }

 private:
  hn::Vec<Bytes64> low_, high_;
};

// Codes of 4 bits, in the lowest bits of 32 words, to bf16. The lookup reads five bits of a word;
// the table has every element twice, so the bit above a code does not matter.
template <RowCode kCode>
class NibbleWordDecoder {
  using Words = hn::Repartition<uint16_t, Bytes64>;

 public:
  HWY_INLINE NibbleWordDecoder()
      : table_(hn::Load(Words(), kBlockElementTable<kCode>.bits.data())) {}

  HWY_INLINE hn::Vec<Words> operator()(hn::Vec<Words> codes) const {
    // IndicesFromVec would assert that the upper bits are 0.
    return hn::TableLookupLanes(table_, hn::Indices512<uint16_t>{codes.raw});
  }

 private:
  const hn::Vec<Words> table_;
};

// A block's 32 elements to 64 bytes.
template <RowCode kCode>
HWY_INLINE void DecodeBlock(const uint8_t* block, uint8_t* HWY_RESTRICT to) {
  const hn::CappedTag<uint16_t, 32> d;
  const hn::Half<decltype(d)> half;
  const hn::Repartition<uint8_t, decltype(d)> d8;
  const auto bytes = hn::PromoteTo(
      half, LoadAny(hn::Rebind<uint8_t, decltype(half)>(), block + kBlockHeader<kCode>));
  auto codes = hn::Combine(d, hn::ShiftRight<4>(bytes), bytes);
  codes = hn::And(codes, hn::Set(d, 15));
  if constexpr (kCode == RowCode::kQ5_0) {
    const auto fifth = hn::LoadMaskBits(d, block + kBlockHeader<kCode> - 4);
    codes = hn::Or(codes, hn::IfThenElseZero(fifth, hn::Set(d, 16)));
  }
  const auto table = hn::Load(d, kBlockElementTable<kCode>.bits.data());
  const auto elements = hn::TableLookupLanes(table, hn::IndicesFromVec(d, codes));
  hn::StoreU(hn::BitCast(d8, elements), d8, to);
}

#endif  // vectors of 512 bits

// One row to bytes at `to`. Pre: DecodesToBF16(kCode).
template <RowCode kCode>
HWY_INLINE void DecodeRowBF16(const uint8_t* from, int dim, uint8_t* HWY_RESTRICT to) {
  const Bytes64 d;
  if constexpr (kCode == RowCode::kBF16) {
    constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
    const int bytes = 2 * dim;
    int i = 0;
    for (; i + kStep <= bytes; i += kStep) {
      hn::StoreU(hn::LoadU(d, from + i), d, to + i);
    }
    const hn::CappedTag<uint8_t, 16> d16;
    for (; i < bytes; i += 16) {
      hn::StoreU(hn::LoadU(d16, from + i), d16, to + i);
    }
#if HWY_CAP_GE512
  } else if constexpr (kCode == RowCode::kQ8_0) {
    constexpr int kBytes = static_cast<int>(BlockBytes(KvFormat::kQ8_0));
    const hn::Half<Bytes64> half;
    int i = 0;
    for (; i + 64 <= dim; i += 64, from += 2 * kBytes) {
      const auto first = hn::LoadU(half, from + kBlockHeader<kCode>);
      const auto second = hn::LoadU(half, from + kBytes + kBlockHeader<kCode>);
      DecodeBytes<RowCode::kI8>(hn::Combine(d, second, first), to + 2 * i);
    }
    if (i < dim) {
      alignas(64) uint8_t last[2 * 64];
      const auto first = hn::LoadU(half, from + kBlockHeader<kCode>);
      DecodeBytes<RowCode::kI8>(hn::ZeroExtendVector(d, first), last);
      std::memcpy(to + 2 * i, last, 64);
    }
  } else if constexpr (IsBlocks(kCode)) {
    constexpr int kBytes = static_cast<int>(BlockBytes(
        static_cast<KvFormat>(static_cast<int>(kCode) - static_cast<int>(RowCode::kQ8_0) + 1)));
    for (int i = 0; i < dim; i += kBlockElements, from += kBytes) {
      DecodeBlock<kCode>(from, to + 2 * i);
    }
  } else {
    int i = 0;
    for (; i + 64 <= dim; i += 64) {
      DecodeBytes<kCode>(hn::LoadU(d, from + i), to + 2 * i);
    }
    if (i < dim) {
      const auto rest = static_cast<size_t>(dim - i);
      alignas(64) uint8_t last[2 * 64] = {};
      std::memcpy(last, from + i, rest);
      DecodeBytes<kCode>(hn::Load(d, last), last);
      std::memcpy(to + 2 * i, last, 2 * rest);
    }
#endif
  }
}

// Group of 16 rows -> bf16 in to[16][stride operands].
template <RowCode kCode>
void DecodeBF16(const KvPages& kv, const KvRows& rows, int stride, uint32_t* HWY_RESTRICT to) {
  for (int row = 0; row < kGroupKeys; ++row, to += stride) {
    DecodeRowBF16<kCode>(rows.row[row], kv.dim, reinterpret_cast<uint8_t*>(to));
  }
}

using DecodeToBF16 = void (*)(const KvPages& kv, const KvRows& rows, int stride, uint32_t* to);
// Pre: DecodesToBF16(code).
inline DecodeToBF16 FindDecoder(BF16Math, RowCode code) {
  HWY_DASSERT(DecodesToBF16(code));
  switch (code) {
#if HWY_CAP_GE512
    case RowCode::kE4M3:
      return &DecodeBF16<RowCode::kE4M3>;
    case RowCode::kE5M2:
      return &DecodeBF16<RowCode::kE5M2>;
    case RowCode::kI8:
      return &DecodeBF16<RowCode::kI8>;
    case RowCode::kQ8_0:
      return &DecodeBF16<RowCode::kQ8_0>;
    case RowCode::kQ4_0:
      return &DecodeBF16<RowCode::kQ4_0>;
    case RowCode::kQ5_0:
      return &DecodeBF16<RowCode::kQ5_0>;
    case RowCode::kIQ4NL:
      return &DecodeBF16<RowCode::kIQ4NL>;
#endif
    default:
      return &DecodeBF16<RowCode::kBF16>;
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // native bf16 dot products

#endif  // per-target include guard
