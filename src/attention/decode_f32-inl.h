// Rows of any code as f32. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_DECODE_F32_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_DECODE_F32_INL_H_
#undef RIFFLE_ATTENTION_DECODE_F32_INL_H_
#else
#define RIFFLE_ATTENTION_DECODE_F32_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/dot-inl.h"
#include "attention/kv_rows.h"
#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

// For 8 elements at a time: every head_dim is a multiple of 8.
using Tag8 = hn::CappedTag<float, 8>;

// Loads a vector of elements of `kCode`, not a block format, as f32; exact.
template <RowCode kCode, class DF>
HWY_INLINE hn::Vec<DF> LoadElements(DF df, const uint8_t* from) {
  static_assert(!IsBlocks(kCode));
  if constexpr (kCode == RowCode::kF32) {
    return LoadAny(df, from);
  } else if constexpr (kCode == RowCode::kF16) {
    return FromF16(df, LoadAny(hn::Rebind<hwy::float16_t, DF>(), from));
  } else if constexpr (kCode == RowCode::kBF16) {
    return hn::PromoteTo(df, LoadAny(hn::Rebind<hwy::bfloat16_t, DF>(), from));
  } else if constexpr (kCode == RowCode::kE4M3) {
    const hn::RebindToUnsigned<DF> du;
    const auto code = hn::PromoteTo(du, LoadAny(hn::Rebind<uint8_t, DF>(), from));
    const auto magnitude = hn::And(code, hn::Set(du, 0x7f));
    // The exponent's bias grows from 7 to 127; a subnormal becomes normal.
    const auto finite =
        hn::Mul(hn::BitCast(df, hn::ShiftLeft<20>(magnitude)), hn::Set(df, 0x1p120f));
    const auto is_nan = hn::RebindMask(df, hn::Eq(magnitude, hn::Set(du, 0x7f)));
    const auto sign = hn::BitCast(df, hn::ShiftLeft<24>(hn::Xor(code, magnitude)));
    return hn::Or(sign, hn::IfThenElse(is_nan, hn::NaN(df), finite));
  } else if constexpr (kCode == RowCode::kE5M2) {
    // The upper byte of an f16.
    const hn::Rebind<uint16_t, DF> du16;
    const auto code = hn::PromoteTo(du16, LoadAny(hn::Rebind<uint8_t, DF>(), from));
    return FromF16(df, hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), hn::ShiftLeft<8>(code)));
  } else {
    const auto x = hn::PromoteTo(hn::RebindToSigned<DF>(), LoadAny(hn::Rebind<int8_t, DF>(), from));
    return hn::ConvertTo(df, x);
  }
}

// Calls f(tag, i) for each vector of the elements [begin, end), multiples of 8; i is its first one.
template <class F>
HWY_INLINE void ForElements(int begin, int end, const F& f) {
  const FloatTag<16> df;
  int i = begin;
  for (; i + 16 <= end; i += 16) {
    for (int j = 0; j < 16; j += static_cast<int>(hn::MaxLanes(df))) {
      f(df, i + j);
    }
  }
  for (; i < end; i += static_cast<int>(hn::MaxLanes(Tag8()))) {
    f(Tag8(), i);
  }
}

template <RowCode kCode>
constexpr int kElementBytes = kCode == RowCode::kF32    ? 4
                              : kCode <= RowCode::kBF16 ? 2
                                                        : 1;

// out[0, n) = n elements of f32, f16 or bf16 as f32; n is a multiple of 8, out aligned.
HWY_INLINE void ToF32(DType dtype, const uint8_t* from, int n, float* HWY_RESTRICT out) {
  const auto copy = [&](auto code) HWY_ATTR {
    constexpr RowCode kCode = decltype(code)::value;
    ForElements(0, n, [&](auto df, int i) HWY_ATTR {
      hn::Store(LoadElements<kCode>(df, from + kElementBytes<kCode> * i), df, out + i);
    });
  };
  if (dtype == DType::kF32) {
    copy(std::integral_constant<RowCode, RowCode::kF32>());
  } else if (dtype == DType::kBF16) {
    copy(std::integral_constant<RowCode, RowCode::kBF16>());
  } else {
    copy(std::integral_constant<RowCode, RowCode::kF16>());
  }
}

// Bytes of a block before its 32 codes.
template <RowCode kCode>
constexpr int kBlockHeader = kCode == RowCode::kQ4_1   ? 4
                             : kCode == RowCode::kQ5_0 ? 6
                             : kCode == RowCode::kQ5_1 ? 8
                                                       : 2;

// The values of the codes of IQ4_NL.
alignas(16) inline constexpr int8_t kIQ4NLElements[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                          1,    13,   25,  38,  53,  69,  89,  113};

// The 32 codes of 4 or 5 bits of a block, in the order of their elements: element i < 16 has the
// lower half of byte i, element 16 + i the upper half, and bit i of a word the fifth bit of element
// i.
template <RowCode kCode>
HWY_INLINE void UnpackCodes(const uint8_t* block, uint8_t* HWY_RESTRICT codes) {
  const hn::FixedTag<uint8_t, 16> d;
  const auto bytes = hn::LoadU(d, block + kBlockHeader<kCode>);
  auto low = hn::And(bytes, hn::Set(d, 15));
  auto high = hn::ShiftRight<4>(bytes);
  if constexpr (kCode == RowCode::kQ5_0 || kCode == RowCode::kQ5_1) {
    const uint8_t* fifth = block + kBlockHeader<kCode> - 4;
    const auto bit = hn::Set(d, 16);
    low = hn::Or(low, hn::IfThenElseZero(hn::LoadMaskBits(d, fifth), bit));
    high = hn::Or(high, hn::IfThenElseZero(hn::LoadMaskBits(d, fifth + 2), bit));
  }
  hn::StoreU(low, d, codes);
  hn::StoreU(high, d, codes + 16);
}

// The 32 integers of a block that its scale multiplies: in place for Q8_0, else unpacked to `to`.
template <RowCode kCode>
HWY_INLINE const uint8_t* BlockIntegers(const uint8_t* block, uint8_t* HWY_RESTRICT to) {
  if constexpr (kCode == RowCode::kQ8_0) {
    return block + kBlockHeader<kCode>;
  } else {
    UnpackCodes<kCode>(block, to);
    const hn::FixedTag<int8_t, 16> d;
    for (int i = 0; i < kBlockElements; i += 16) {
      auto x = LoadAny(d, to + i);
      if constexpr (kCode == RowCode::kIQ4NL) {
        x = hn::TableLookupBytes(hn::Load(d, kIQ4NLElements), x);
      } else if constexpr (!HasOffsets(kCode)) {
        x = hn::Sub(x, hn::Set(d, kCode == RowCode::kQ4_0 ? 8 : 16));
      }
      hn::StoreU(hn::BitCast(hn::FixedTag<uint8_t, 16>(), x), hn::FixedTag<uint8_t, 16>(), to + i);
    }
    return to;
  }
}

// Group of 16 rows times their scales -> to[16][stride].
//   scales  [groups][16], then offsets likewise (LoadScales); not read if there are no groups
template <RowCode kCode>
void DecodeF32(const KvPages& kv, const KvRows& rows, const float* scales, int stride,
               float* HWY_RESTRICT to) {
  for (int row = 0; row < kGroupKeys; ++row, to += stride) {
    const uint8_t* from = rows.row[row];
    if constexpr (IsBlocks(kCode)) {
      alignas(16) uint8_t integers[kBlockElements];
      constexpr int64_t kBytes = BlockBytes(
          static_cast<KvFormat>(static_cast<int>(kCode) - static_cast<int>(RowCode::kQ8_0) + 1));
      for (int g = 0; g < kv.scales_per_row; ++g, from += kBytes) {
        const uint8_t* x = BlockIntegers<kCode>(from, integers);
        const float scale = scales[g * kGroupKeys + row];
        const float offset =
            HasOffsets(kCode) ? scales[(kv.scales_per_row + g) * kGroupKeys + row] : 0.0f;
        ForElements(0, kBlockElements, [&](auto df, int i) HWY_ATTR {
          auto y = hn::Mul(LoadElements<RowCode::kI8>(df, x + i), hn::Set(df, scale));
          if constexpr (HasOffsets(kCode)) {  // the product is exact: 5 bits times 11
            y = hn::Add(y, hn::Set(df, offset));
          }
          hn::Store(y, df, to + g * kBlockElements + i);
        });
      }
    } else {
      int g = 0;
      for (int begin = 0; begin < kv.dim; begin += kv.elements_per_scale, ++g) {
        const float scale = kv.scales_per_row > 0 ? scales[g * kGroupKeys + row] : 1.0f;
        ForElements(begin, begin + kv.elements_per_scale, [&](auto df, int i) HWY_ATTR {
          auto x = LoadElements<kCode>(df, from + kElementBytes<kCode> * i);
          if constexpr (kCode >= RowCode::kE4M3) {
            x = hn::Mul(x, hn::Set(df, scale));
          }
          hn::Store(x, df, to + i);
        });
      }
    }
  }
}

// Kernels keep the address of their code's decoder: chosen once per call, not per group of rows.
using DecodeToF32 = void (*)(const KvPages& kv, const KvRows& rows, const float* scales, int stride,
                             float* to);
inline DecodeToF32 FindDecoder(F32Math, RowCode code) {
  static constexpr DecodeToF32 kDecoders[] = {
      &DecodeF32<RowCode::kF32>,  &DecodeF32<RowCode::kF16>,  &DecodeF32<RowCode::kBF16>,
      &DecodeF32<RowCode::kE4M3>, &DecodeF32<RowCode::kE5M2>, &DecodeF32<RowCode::kI8>,
      &DecodeF32<RowCode::kQ8_0>, &DecodeF32<RowCode::kQ4_0>, &DecodeF32<RowCode::kQ4_1>,
      &DecodeF32<RowCode::kQ5_0>, &DecodeF32<RowCode::kQ5_1>, &DecodeF32<RowCode::kIQ4NL>};
  return kDecoders[static_cast<int>(code)];
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
