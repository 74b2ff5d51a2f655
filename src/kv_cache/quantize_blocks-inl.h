// Blocks of 32 elements in GGUF's formats. Quotients, products and sums are single f32 operations
// in the order of the references (riffle/write_kv.h), so the bits are theirs. Included once per
// SIMD target.
#if defined(RIFFLE_KV_CACHE_QUANTIZE_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_KV_CACHE_QUANTIZE_BLOCKS_INL_H_
#undef RIFFLE_KV_CACHE_QUANTIZE_BLOCKS_INL_H_
#else
#define RIFFLE_KV_CACHE_QUANTIZE_BLOCKS_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kv_cache/encode-inl.h"
#include "kv_cache/scale_values.h"
#include "riffle/attention.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::kv_cache::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr size_t kBlock = 32;

// A block's elements, aligned.
struct Block {
  HWY_ALIGN float x[kBlock];

  template <DType kIn>
  HWY_INLINE void Load(const uint8_t* in) {
    const DF df;
    for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
      hn::Store(LoadF32<kIn>(df, in + i * SizeOf(kIn)), df, x + i);
    }
  }

  // The largest magnitude; NaN if an element is NaN.
  HWY_INLINE float MaxMagnitude() const {
    const DF df;
    const hn::RebindToSigned<DF> di;
    auto max = hn::Zero(di);
    for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
      max = hn::Max(max, hn::BitCast(di, hn::Abs(hn::Load(df, x + i))));
    }
    return std::bit_cast<float>(hn::ReduceMax(di, max));
  }

  // The first element of this magnitude. Pre: there is one.
  HWY_INLINE float FirstOfMagnitude(float magnitude) const {
    const DF df;
    for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
      const auto equal = hn::Eq(hn::Abs(hn::Load(df, x + i)), hn::Set(df, magnitude));
      const intptr_t first = hn::FindFirstTrue(df, equal);
      if (first >= 0) {
        return x[i + static_cast<size_t>(first)];
      }
    }
    HWY_DASSERT(false);
    return magnitude;
  }
};

HWY_INLINE void StoreHalf(float value, uint8_t* out) {
  const uint16_t bits = F16Bits(value);
  std::memcpy(out, &bits, sizeof(bits));
}

// 1 / d, or 0 if d is 0 or d or 1 / d is not finite: all elements then get the code of 0.
HWY_INLINE float ReciprocalOrZero(float d) {
  const float inverse = 1.0f / d;
  return d != 0.0f && std::isfinite(d) && std::isfinite(inverse) ? inverse : 0.0f;
}

// codes[i] = (x[i] - offset) * inverse + half, truncated to an integer of at most `max_code`.
HWY_INLINE void CodeAll(const Block& block, float offset, float inverse, float half, int max_code,
                        uint8_t* codes) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<uint8_t, DF> d8;
  for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
    const auto centred = hn::Sub(hn::Load(df, block.x + i), hn::Set(df, offset));
    const auto scaled = hn::Add(hn::Mul(centred, hn::Set(df, inverse)), hn::Set(df, half));
    const auto code = hn::Min(hn::ConvertTo(di, scaled), hn::Set(di, max_code));
    hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i);
  }
}

// Packs two codes per byte: element i in the lower half of byte i, element i + 16 in the upper.
HWY_INLINE void PackHalves(const uint8_t* codes, uint8_t* out) {
  const hn::FixedTag<uint8_t, 16> d8;
  const auto low = hn::And(hn::LoadU(d8, codes), hn::Set(d8, 15));
  hn::StoreU(hn::Or(low, hn::ShiftLeft<4>(hn::LoadU(d8, codes + 16))), d8, out);
}

// Packs bit 4 of each code: element i becomes bit i of four bytes.
HWY_INLINE void PackFifthBits(const uint8_t* codes, uint8_t* out) {
  const hn::FixedTag<uint8_t, 16> d8;
  for (size_t i = 0; i < 2; ++i) {
    uint8_t bits[16];  // StoreMaskBits may write more than the two that count
    hn::StoreMaskBits(d8, hn::Ge(hn::LoadU(d8, codes + 16 * i), hn::Set(d8, 16)), bits);
    std::memcpy(out + 2 * i, bits, 2);
  }
}

// Writes d, then 32 int8: x / d, with halves rounded away from zero.
HWY_NOINLINE void QuantizeQ8(const Block& block, uint8_t* out) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<int8_t, DF> d8;
  const float d = block.MaxMagnitude() / 127.0f;
  const float inverse = ReciprocalOrZero(d);
  StoreHalf(d, out);
  out += 2;
  if (inverse == 0.0f) {
    std::memset(out, 0, kBlock);
    return;
  }
  for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
    const auto scaled = hn::Mul(hn::Load(df, block.x + i), hn::Set(df, inverse));
    const auto magnitude = hn::Abs(scaled);
    const auto whole = hn::ConvertTo(di, magnitude);
    const auto rest = hn::Sub(magnitude, hn::ConvertTo(df, whole));
    const auto up = hn::BitCast(
        di, hn::IfThenElseZero(hn::Ge(rest, hn::Set(df, 0.5f)), hn::BitCast(df, hn::Set(di, 1))));
    const auto rounded = hn::Add(whole, up);
    const auto negative = hn::RebindMask(di, hn::Lt(scaled, hn::Zero(df)));
    const auto code = hn::IfThenElse(negative, hn::Neg(rounded), rounded);
    StoreAny(d8, hn::DemoteTo(d8, code), out + i);
  }
}

// Q4_0 and Q5_0: the element of the largest magnitude gets the code 0, and zero the middle code.
template <int kBits>
HWY_NOINLINE void QuantizeCentred(const Block& block, uint8_t* out) {
  constexpr int kMiddle = 1 << (kBits - 1);
  uint8_t codes[kBlock];
  const float magnitude = block.MaxMagnitude();
  const float first = std::isfinite(magnitude) ? block.FirstOfMagnitude(magnitude) : magnitude;
  const float d = first / static_cast<float>(-kMiddle);
  const float inverse = ReciprocalOrZero(d);
  if (inverse != 0.0f) {
    CodeAll(block, 0.0f, inverse, kMiddle + 0.5f, 2 * kMiddle - 1, codes);
  } else {
    std::memset(codes, kMiddle, kBlock);
  }
  StoreHalf(d, out);
  if constexpr (kBits == 5) {
    PackFifthBits(codes, out + 2);
  }
  PackHalves(codes, out + (kBits == 5 ? 6 : 2));
}

// Q4_1 and Q5_1: the smallest element is stored and gets code 0; the largest gets the last code.
template <int kBits>
HWY_NOINLINE void QuantizeFromMin(const Block& block, uint8_t* out) {
  constexpr int kLast = (1 << kBits) - 1;
  uint8_t codes[kBlock];
  const DF df;
  VF low = hn::Load(df, block.x);
  VF high = low;
  for (size_t i = hn::Lanes(df); i < kBlock; i += hn::Lanes(df)) {
    low = hn::Min(low, hn::Load(df, block.x + i));
    high = hn::Max(high, hn::Load(df, block.x + i));
  }
  const float magnitude = block.MaxMagnitude();
  const bool is_nan = std::isnan(magnitude);
  float min = is_nan ? magnitude : hn::ReduceMin(df, low);
  if (min == 0.0f) {
    min = block.FirstOfMagnitude(0.0f);  // takes the first of +0 and -0, on every target
  }
  const float d = is_nan ? magnitude : (hn::ReduceMax(df, high) - min) / static_cast<float>(kLast);
  const float inverse = ReciprocalOrZero(d);
  if (inverse != 0.0f) {
    CodeAll(block, min, inverse, 0.5f, kLast, codes);
  } else {
    std::memset(codes, 0, kBlock);
  }
  StoreHalf(d, out);
  StoreHalf(min, out + 2);
  if constexpr (kBits == 5) {
    PackFifthBits(codes, out + 4);
  }
  PackHalves(codes, out + (kBits == 5 ? 8 : 4));
}

// The values that the codes of IQ4_NL stand for, in units of d.
alignas(64) inline constexpr float kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                     1,    13,   25,  38,  53,  69,  89,  113};

// Each code is the one whose value is nearest to x / d for d = x_max / -127; then d is fitted to
// the codes by least squares, weighted with x^2.
HWY_NOINLINE void QuantizeIQ4(const Block& block, uint8_t* out) {
  constexpr float kMinMagnitude = 1e-15f;  // ggml's; a block below it becomes zeros
  const DF df;
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<uint8_t, DF> d8;
  uint8_t codes[kBlock] = {};
  const float magnitude = block.MaxMagnitude();
  float d = 0.0f;
  if (!std::isfinite(magnitude)) {
    d = std::numeric_limits<float>::quiet_NaN();
  } else if (magnitude >= kMinMagnitude) {
    HWY_ALIGN float xq[kBlock], qq[kBlock];  // the terms of the two sums
    const float inverse = 1.0f / (block.FirstOfMagnitude(magnitude) / kIQ4Values[0]);
    for (size_t i = 0; i < kBlock; i += hn::Lanes(df)) {
      const auto x = hn::Load(df, block.x + i);
      const auto wanted = hn::Mul(hn::Set(df, inverse), x);
      auto code = hn::Zero(di);
      auto value = hn::Set(df, kIQ4Values[0]);
      for (int step = 1; step < 16; ++step) {  // a value half-way between two takes the upper one
        const float half = (kIQ4Values[step - 1] + kIQ4Values[step]) / 2;
        const auto above = hn::Ge(wanted, hn::Set(df, half));
        code = hn::Sub(code, hn::VecFromMask(di, hn::RebindMask(di, above)));
        value = hn::IfThenElse(above, hn::Set(df, kIQ4Values[step]), value);
      }
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i);
      const auto weighted = hn::Mul(hn::Mul(x, x), value);
      hn::Store(hn::Mul(weighted, x), df, xq + i);
      hn::Store(hn::Mul(weighted, value), df, qq + i);
    }
    float sum_xq = 0.0f, sum_qq = 0.0f;
    for (size_t i = 0; i < kBlock; ++i) {
      sum_xq += xq[i];
      sum_qq += qq[i];
    }
    d = sum_xq / sum_qq;
  }
  StoreHalf(d, out);
  PackHalves(codes, out + 2);
}

template <KvFormat kFormat>
HWY_INLINE void QuantizeBlock(const Block& block, uint8_t* out) {
  if constexpr (kFormat == KvFormat::kQ8_0) {
    QuantizeQ8(block, out);
  } else if constexpr (kFormat == KvFormat::kQ4_0) {
    QuantizeCentred<4>(block, out);
  } else if constexpr (kFormat == KvFormat::kQ5_0) {
    QuantizeCentred<5>(block, out);
  } else if constexpr (kFormat == KvFormat::kQ4_1) {
    QuantizeFromMin<4>(block, out);
  } else if constexpr (kFormat == KvFormat::kQ5_1) {
    QuantizeFromMin<5>(block, out);
  } else {
    QuantizeIQ4(block, out);
  }
}

}  // namespace riffle::kv_cache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
