// Blocks of a weight as vectors. Included once per SIMD target.
#if defined(RIFFLE_ENGINE_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ENGINE_BLOCK_INL_H_
#undef RIFFLE_ENGINE_BLOCK_INL_H_
#else
#define RIFFLE_ENGINE_BLOCK_INL_H_
#endif

#include <hwy/highway.h>

#include <type_traits>

#include "core/load-inl.h"
#include "engine/quant/matrix.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::engine::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

using DI = hn::CappedTag<int32_t, 16>;
using DF = hn::RebindToFloat<DI>;
using DU8 = hn::Repartition<uint8_t, DI>;
using DU16 = hn::Repartition<uint16_t, DI>;
using DI8 = hn::Repartition<int8_t, DI>;
using VI = hn::Vec<DI>;
using VU8 = hn::Vec<DU8>;
using VI8 = hn::Vec<DI8>;
using VF = hn::Vec<DF>;

// A block of a weight, for as many outputs as a vector has lanes.
struct BlockVector {
  VI8 codes[8];  // [q]: quarter q, which is inputs 4 q to 4 q + 3
  // -128 times the sum of the codes, which cancels the zero point of the high plane: over all
  // inputs, or over the first 16 and over the others.
  VI zero[2];
  VF scale[2];    // likewise
  VF minimum[2];  // likewise
};

template <int kBits>
HWY_INLINE VU8 ShiftRightBits(VU8 bytes) {
  return hn::BitCast(DU8(), hn::ShiftRight<kBits>(hn::BitCast(DU16(), bytes)));
}
template <int kBits>
HWY_INLINE VU8 ShiftLeftBits(VU8 bytes) {
  return hn::BitCast(DU8(), hn::ShiftLeft<kBits>(hn::BitCast(DU16(), bytes)));
}

// codes |= the bits of `bits` from bit kFrom on, moved to bit 4 and up.
template <int kFrom>
HWY_INLINE void AddBits(VU8 bits, uint8_t mask, VU8& codes) {
  if constexpr (kFrom < 4) {
    bits = ShiftLeftBits<4 - kFrom>(bits);
  } else if constexpr (kFrom > 4) {
    bits = ShiftRightBits<kFrom - 4>(bits);
  }
  codes = hn::OrAnd(codes, bits, hn::Set(DU8(), mask));
}

template <Packing kPacking>
HWY_INLINE void LoadCodes(const uint8_t* block, size_t lane, VI8 (&out)[8]) {
  const DU8 d;
  const uint8_t* from = block + 4 * lane;
  constexpr size_t kPitch = 4 * kPanel;
  VU8 codes[8];
  if constexpr (kPacking == Packing::kQ8) {
    for (size_t i = 0; i < 8; ++i) {
      codes[i] = hn::Load(d, from + i * kPitch);
    }
  } else if constexpr (kPacking == Packing::kQ2) {
    const VU8 three = hn::Set(d, 3);
    for (size_t half = 0; half < 2; ++half) {
      const VU8 bits = hn::Load(d, from + half * kPitch);
      codes[4 * half] = hn::And(bits, three);
      codes[4 * half + 1] = hn::And(ShiftRightBits<2>(bits), three);
      codes[4 * half + 2] = hn::And(ShiftRightBits<4>(bits), three);
      codes[4 * half + 3] = hn::And(ShiftRightBits<6>(bits), three);
    }
  } else {
    for (size_t i = 0; i < 4; ++i) {
      const VU8 pair = hn::Load(d, from + i * kPitch);
      codes[i] = hn::And(pair, hn::Set(d, 15));
      codes[i + 4] = hn::And(ShiftRightBits<4>(pair), hn::Set(d, 15));
    }
  }
  if constexpr (kPacking == Packing::kQ5 || kPacking == Packing::kQ5Minimum) {
    const VU8 bits = hn::Load(d, from + 4 * kPitch);
    AddBits<0>(bits, 16, codes[0]);
    AddBits<1>(bits, 16, codes[1]);
    AddBits<2>(bits, 16, codes[2]);
    AddBits<3>(bits, 16, codes[3]);
    AddBits<4>(bits, 16, codes[4]);
    AddBits<5>(bits, 16, codes[5]);
    AddBits<6>(bits, 16, codes[6]);
    AddBits<7>(bits, 16, codes[7]);
  }
  if constexpr (kPacking == Packing::kQ6) {
    for (size_t half = 0; half < 2; ++half) {
      const VU8 bits = hn::Load(d, from + (4 + half) * kPitch);
      AddBits<0>(bits, 48, codes[4 * half]);
      AddBits<2>(bits, 48, codes[4 * half + 1]);
      AddBits<4>(bits, 48, codes[4 * half + 2]);
      AddBits<6>(bits, 48, codes[4 * half + 3]);
    }
  }
  for (size_t i = 0; i < 8; ++i) {
    out[i] = hn::BitCast(DI8(), Bias(kPacking) == 0
                                    ? codes[i]
                                    : hn::Sub(codes[i], hn::Set(d, uint8_t{Bias(kPacking)})));
  }
}

// How many codes can be added without exceeding 127.
template <Packing kPacking>
constexpr int kCodesOfAByte = kPacking == Packing::kQ8          ? 1
                              : kPacking == Packing::kQ5Minimum ? 4
                              : kPacking == Packing::kQ6        ? 4
                                                                : 8;

// Returns -128 times the sum of the codes of kCount quarters.
template <Packing kPacking, int kCount>
HWY_INLINE VI ZeroOf(const VI8* codes) {
  const VU8 factor = hn::Set(DU8(), 128);
  constexpr int kStep = HWY_MIN(kCodesOfAByte<kPacking>, kCount);
  VI sum = hn::Zero(DI());
  for (int i = 0; i < kCount; i += kStep) {
    VI8 bytes = codes[i];
    for (int j = 1; j < kStep; ++j) {
      bytes = hn::Add(bytes, codes[i + j]);
    }
    sum = hn::SumOfMulQuadAccumulate(DI(), factor, bytes, sum);
  }
  return hn::Neg(sum);
}

HWY_INLINE VF LoadHalf(const uint8_t* from, size_t lane) {
  const hn::Rebind<hwy::float16_t, DF> df16;
  return FromF16(DF(), LoadAny(df16, from + 2 * lane));
}
template <typename T>
HWY_INLINE VF LoadFactor(const T* from) {
  const hn::Rebind<T, DF> d8;
  return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(d8, from)));
}

template <Packing kPacking>
HWY_INLINE BlockVector LoadBlock(const uint8_t* block, size_t lane) {
  using Factor = std::conditional_t<kPacking == Packing::kQ6, int8_t, uint8_t>;
  constexpr size_t kHalves = HasHalves(kPacking) ? 2 : 1;
  BlockVector out;
  LoadCodes<kPacking>(block, lane, out.codes);
  const uint8_t* scales = block + CodeBytes(kPacking);
  const uint8_t* factors = block + FactorsAt(kPacking) + lane;
  const VF d = LoadHalf(scales, lane);
  for (size_t half = 0; half < 2; ++half) {
    out.zero[half] = hn::Zero(DI());
    out.scale[half] = d;
    out.minimum[half] = hn::Zero(DF());
  }
  for (size_t half = 0; half < kHalves; ++half) {
    out.zero[half] = ZeroOf<kPacking, 8 / kHalves>(out.codes + half * 4);
    if constexpr (HasHalves(kPacking) || HasMinimum(kPacking)) {
      const auto* factor = reinterpret_cast<const Factor*>(factors + half * kPanel);
      out.scale[half] = hn::Mul(d, LoadFactor(factor));
    }
    if constexpr (HasMinimum(kPacking)) {
      out.minimum[half] = hn::Mul(LoadHalf(scales + 2 * kPanel, lane),
                                  LoadFactor(factors + (kHalves + half) * kPanel));
    }
  }
  return out;
}

// A vector of elements of a weight without blocks.
template <Packing kPacking>
HWY_INLINE VF LoadDense(const uint8_t* from) {
  const DF df;
  if constexpr (kPacking == Packing::kF32) {
    return LoadAny(df, from);
  } else if constexpr (kPacking == Packing::kF16) {
    return FromF16(df, LoadAny(hn::Rebind<hwy::float16_t, DF>(), from));
  } else {
    const auto bits = LoadAny(hn::Rebind<uint16_t, DF>(), from);
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(hn::RebindToUnsigned<DF>(), bits)));
  }
}

}  // namespace riffle::engine::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
