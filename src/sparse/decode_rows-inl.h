// Rows of the sparse formats as f32 or bf16. Included once per SIMD target.
#if defined(RIFFLE_SPARSE_DECODE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_DECODE_ROWS_INL_H_
#undef RIFFLE_SPARSE_DECODE_ROWS_INL_H_
#else
#define RIFFLE_SPARSE_DECODE_ROWS_INL_H_
#endif

#include <bit>
#include <cstring>

#include "core/round-inl.h"
#include "riffle/sparse_attention.h"
#include "sparse/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// e4m3 times a scale as f32.
HWY_INLINE void ScaledE4M3(const uint8_t* from, int count, float scale, float* to) {
  const LaneF32 df;
  const auto factor = hn::Set(df, scale);
  for (int i = 0; i < count; i += kLanes) {
    hn::StoreU(hn::Mul(LoadF32(DType::kE4M3, from + i), factor), df, to + i);
  }
}

// The same as bf16, to the nearest. If the scale is a power of two, as most are, this is an
// addition to exponents: 4 operations for 32 elements.
HWY_INLINE void ScaledE4M3(const uint8_t* from, int count, float scale, uint16_t* to) {
  const auto bits = std::bit_cast<uint32_t>(scale);
  if ((bits & 0x7fffff) != 0 || bits < (27u << 23) || bits > (227u << 23)) {
    const LaneF32 df;
    const hn::Rebind<uint16_t, LaneF32> du16;
    for (int i = 0; i < count; i += kLanes) {
      const auto x = hn::Mul(LoadF32(DType::kE4M3, from + i), hn::Set(df, scale));
      hn::StoreU(core::HWY_NAMESPACE::RoundToBF16(df, x), du16, to + i);
    }
    return;
  }
  E4M3ToBF16(from, count, to);
  const hn::CappedTag<uint16_t, 32> d;
  const auto shift = hn::Set(d, static_cast<uint16_t>((bits >> 16) - 0x3f80));
  const auto magnitude_bits = hn::Set(d, uint16_t{0x7fff});
  for (int i = 0; i < count; i += static_cast<int>(hn::Lanes(d))) {
    const auto x = hn::LoadU(d, to + i);
    const auto magnitude = hn::And(x, magnitude_bits);
    // Zeros and NaN stay.
    const auto fixed =
        hn::Or(hn::Eq(magnitude, hn::Zero(d)), hn::Eq(magnitude, hn::Set(d, uint16_t{0x7fc0})));
    hn::StoreU(hn::Add(x, hn::IfThenZeroElse(fixed, shift)), d, to + i);
  }
}

HWY_INLINE void FromBF16(const uint8_t* from, int count, float* to) {
  RowToF32(DType::kBF16, from, count, to);
}
HWY_INLINE void FromBF16(const uint8_t* from, int count, uint16_t* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(uint16_t));
}

HWY_INLINE void FromPlain(DType dtype, const uint8_t* from, int count, float* to) {
  RowToF32(dtype, from, count, to);
}
HWY_INLINE void FromPlain(DType, const uint8_t* from, int count, uint16_t* to) {
  FromBF16(from, count, to);
}

// The row at `at` as f32 or bf16 (T: float, uint16_t).
template <typename T>
HWY_INLINE void DecodeRow(const SparseRows& rows, const uint8_t* at, T* to) {
  if (rows.format == SparseRowFormat::kMla656) {
    for (int group = 0; group < 4; ++group) {
      float scale;
      std::memcpy(&scale, at + 512 + group * 4, sizeof(scale));
      ScaledE4M3(at + group * 128, 128, scale, to + group * 128);
    }
    FromBF16(at + 528, 64, to + 512);
  } else if (rows.format == SparseRowFormat::kMla584) {
    const int64_t offset = at - static_cast<const uint8_t*>(rows.data);
    const int64_t token = offset % rows.page_stride / 576;
    const uint8_t* scales = at + (rows.page_size - token) * 576 + token * 8;  // Mla584Scales
    for (int group = 0; group < 7; ++group) {
      ScaledE4M3(at + group * 64, 64, FromE8M0(scales[group]), to + group * 64);
    }
    FromBF16(at + 448, 64, to + 448);
  } else {
    FromPlain(rows.dtype, at, static_cast<int>(rows.row_dim), to);
  }
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
