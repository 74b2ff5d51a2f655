// Scales of keys and values. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_SCALES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_SCALES_INL_H_
#undef RIFFLE_ATTENTION_SCALES_INL_H_
#else
#define RIFFLE_ATTENTION_SCALES_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention/dot-inl.h"
#include "attention/kv_rows.h"
#include "core/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

// The address of row i's scale at `offset`. Rows that no query sees have scales of 0 at any offset.
HWY_INLINE const uint8_t* ScaleAddress(const KvRows& rows, int i, int64_t offset) {
  return rows.row[i] == kZeroRow ? kZeroRow : rows.row[i] + offset;
}

// to[i] = the T at ScaleAddress, for each of 16 rows.
template <typename T>
HWY_INLINE void GatherRows(const KvRows& rows, int64_t offset, T* HWY_RESTRICT to) {
  for (int i = 0; i < kGroupKeys; ++i) {
    std::memcpy(to + i, ScaleAddress(rows, i, offset), sizeof(T));
  }
}

// The bits of 2^(code - 127): the smallest is subnormal, the code 255 is NaN.
HWY_INLINE uint32_t E8M0Bits(uint8_t code) {
  return code == 0 ? 0x00400000u : code == 255 ? 0x7fc00000u : uint32_t{code} << 23;
}

// to[i] = the number of `dtype` at ScaleAddress, as f32.
HWY_INLINE void LoadNumbers(DType dtype, const KvRows& rows, int64_t offset,
                            float* HWY_RESTRICT to) {
  const FloatTag<16> df;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  alignas(64) uint16_t halves[kGroupKeys];
  if (dtype == DType::kF32) {
    GatherRows(rows, offset, to);
  } else if (dtype == DType::kE8M0) {
    for (int i = 0; i < kGroupKeys; ++i) {
      const uint32_t bits = E8M0Bits(*ScaleAddress(rows, i, offset));
      std::memcpy(to + i, &bits, sizeof(bits));
    }
  } else if (dtype == DType::kBF16) {
    GatherRows(rows, offset, halves);
    const hn::Rebind<uint16_t, decltype(df)> dh;
    const hn::RebindToUnsigned<decltype(df)> du;
    for (int i = 0; i < kGroupKeys; i += kN) {
      const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(du, hn::Load(dh, halves + i)));
      hn::Store(hn::BitCast(df, bits), df, to + i);
    }
  } else {
    GatherRows(rows, offset, halves);
    const hn::Rebind<uint16_t, decltype(df)> dh;
    const hn::Rebind<hwy::float16_t, decltype(df)> df16;
    for (int i = 0; i < kGroupKeys; i += kN) {
      hn::Store(FromF16(df, hn::BitCast(df16, hn::Load(dh, halves + i))), df, to + i);
    }
  }
}

#if HWY_CAP_GE256
// Loads numbers of 16 bits of eight rows, lane after lane: gathers took a tenth of a decode over
// Q4_0.
HWY_INLINE hn::Vec<hn::FixedTag<uint16_t, 8>> LoadEightHalves(const uint8_t* from, int64_t stride) {
  const auto at = [&](int i) HWY_ATTR {
    uint16_t bits;
    std::memcpy(&bits, from + i * stride, sizeof(bits));
    return bits;
  };
  return hn::Dup128VecFromValues(hn::FixedTag<uint16_t, 8>(), at(0), at(1), at(2), at(3), at(4),
                                 at(5), at(6), at(7));
}

// to[i] = a vector of f16 or bf16 as f32.
template <class DF, class VH>
HWY_INLINE void StoreHalves(DF df, DType dtype, VH halves, float* HWY_RESTRICT to) {
  if (dtype == DType::kF16) {
    const hn::Rebind<hwy::float16_t, DF> df16;
    hn::Store(FromF16(df, hn::BitCast(df16, halves)), df, to);
  } else {
    const hn::RebindToUnsigned<DF> du;
    hn::Store(hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, halves))), df, to);
  }
}

#endif

// LoadNumbers where the rows lie in one page: needs no pointer to each row, and no small stores
// that a vector load must wait for.
HWY_INLINE void LoadNumbersOfRun(DType dtype, const RowRun& run, int64_t offset,
                                 float* HWY_RESTRICT to) {
  const FloatTag<16> df;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  const uint8_t* from = run.data + offset;
  if (dtype == DType::kF32 && run.stride == sizeof(float)) {
    for (int i = 0; i < kGroupKeys; i += kN) {
      hn::Store(LoadAny(df, from + static_cast<size_t>(i) * sizeof(float)), df, to + i);
    }
    return;
  }
#if HWY_CAP_GE256
  if (dtype == DType::kF16 || dtype == DType::kBF16) {
    const auto low = LoadEightHalves(from, run.stride);
    const auto high = LoadEightHalves(from + 8 * run.stride, run.stride);
#if HWY_CAP_GE512
    StoreHalves(df, dtype, hn::Combine(hn::FixedTag<uint16_t, 16>(), high, low), to);
#else
    StoreHalves(df, dtype, low, to);
    StoreHalves(df, dtype, high, to + kN);
#endif
    return;
  }
#endif
  KvRows rows;
  for (int i = 0; i < kGroupKeys; ++i) {
    rows.row[i] = run.data + i * run.stride;
  }
  LoadNumbers(dtype, rows, offset, to);
}

// to[g * stride + i] = scale g of row i, divided by the divisor, for all groups of a row; then, for
// block formats with offsets, the offsets likewise. load(offset, to) loads 16 numbers.
template <class Load>
HWY_INLINE void LoadScales(const KvPages& kv, int stride, float* HWY_RESTRICT to,
                           const Load& load) {
  const FloatTag<16> df;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  for (int g = 0; g < kv.scales_per_row; ++g, to += stride) {
    load(g * kv.scale_group_stride, to);
    if (kv.scale_divisor != 1.0f) {
      const auto divisor = hn::Set(df, kv.scale_divisor);
      for (int i = 0; i < kGroupKeys; i += kN) {
        hn::Store(hn::Div(hn::Load(df, to + i), divisor), df, to + i);
      }
    }
  }
  for (int g = 0; HasOffsets(kv.code) && g < kv.scales_per_row; ++g, to += stride) {
    load(g * kv.scale_group_stride + 2, to);
  }
}

#if HWY_CAP_GE512
// Indices that pick the scales of four blocks from a row's 128 bytes: word g is that of block g.
template <int kBytes>
constexpr std::array<uint16_t, 32> ScaleWords() {
  std::array<uint16_t, 32> words{};
  for (int g = 0; g < 4; ++g) {
    words[static_cast<size_t>(g)] = static_cast<uint16_t>(g * kBytes / 2);
  }
  return words;
}
// The same for two rows whose four scales lie in 64 bytes each: words 2 g and 2 g + 1.
template <int kBytes>
constexpr std::array<uint16_t, 32> ScaleWordsOfTwoRows() {
  std::array<uint16_t, 32> words{};
  for (int g = 0; g < 4; ++g) {
    words[static_cast<size_t>(2 * g)] = static_cast<uint16_t>(g * kBytes / 2);
    words[static_cast<size_t>(2 * g + 1)] = static_cast<uint16_t>(32 + g * kBytes / 2);
  }
  return words;
}

// to[g * stride + i] = scale g of row i of blocks of kBytes, an f16 at the beginning of each block,
// for the `groups` blocks of 16 rows. A row's scales are picked out of its bytes, four at a time:
// loads of single scales were a fifth of a decode over Q4_0.
template <int kBytes>
HWY_INLINE void LoadBlockScales(const KvRows& rows, int groups, int stride,
                                float* HWY_RESTRICT to) {
  const hn::CappedTag<uint8_t, 64> d;
  const hn::CappedTag<uint16_t, 32> d16;
  const hn::FixedTag<uint32_t, 4> d4;
  const hn::FixedTag<uint32_t, 8> d8;
  const hn::FixedTag<uint64_t, 4> twice;
  const hn::FixedTag<uint16_t, 16> halves;
  constexpr bool kInOneVector = 3 * kBytes + 2 <= 64;
  alignas(64) static constexpr auto kWords =
      kInOneVector ? ScaleWordsOfTwoRows<kBytes>() : ScaleWords<kBytes>();
  const auto words = hn::SetTableIndices(d16, kWords.data());
  for (int g = 0; g < groups; g += 4) {
    const auto bytes = static_cast<size_t>(HWY_MIN(groups - g, 4) * kBytes);
    const auto first = hn::FirstN(d, HWY_MIN(bytes, size_t{64}));
    const auto second = hn::FirstN(d, bytes - HWY_MIN(bytes, size_t{64}));
    const auto load = [&](int row, int at, auto mask) HWY_ATTR {
      return hn::BitCast(d16, hn::MaskedLoad(mask, d, rows.row[row] + g * kBytes + at));
    };
    // Scales of rows i and i + 1, for each block side by side.
    const auto two = [&](int i) HWY_ATTR {
      if constexpr (kInOneVector) {
        const auto pairs =
            hn::TwoTablesLookupLanes(d16, load(i, 0, first), load(i + 1, 0, first), words);
        return hn::ResizeBitCast(d4, pairs);
      } else {
        const hn::FixedTag<uint16_t, 8> d16x8;
        const auto of_row = [&](int row) HWY_ATTR {
          return hn::ResizeBitCast(d16x8, hn::TwoTablesLookupLanes(d16, load(row, 0, first),
                                                                   load(row, 64, second), words));
        };
        return hn::BitCast(d4, hn::InterleaveLower(d16x8, of_row(i), of_row(i + 1)));
      }
    };
    // Rows 2 i and 2 i + 1 in the lower block, rows 8 + 2 i and 9 + 2 i in the upper one.
    const auto four = [&](int i) HWY_ATTR { return hn::Combine(d8, two(8 + 2 * i), two(2 * i)); };
    const auto x0 = four(0);
    const auto x1 = four(1);
    const auto x2 = four(2);
    const auto x3 = four(3);
    const auto low01 = hn::BitCast(twice, hn::InterleaveLower(d8, x0, x1));
    const auto low23 = hn::BitCast(twice, hn::InterleaveLower(d8, x2, x3));
    const auto high01 = hn::BitCast(twice, hn::InterleaveUpper(d8, x0, x1));
    const auto high23 = hn::BitCast(twice, hn::InterleaveUpper(d8, x2, x3));
    const auto store = [&](int i, auto scales) HWY_ATTR {
      if (g + i < groups) {
        StoreHalves(FloatTag<16>(), DType::kF16, hn::BitCast(halves, scales),
                    to + (g + i) * stride);
      }
    };
    store(0, hn::InterleaveLower(twice, low01, low23));
    store(1, hn::InterleaveUpper(twice, low01, low23));
    store(2, hn::InterleaveLower(twice, high01, high23));
    store(3, hn::InterleaveUpper(twice, high01, high23));
  }
}

// LoadScales of block formats without offsets.
HWY_INLINE void LoadScalesOfBlocks(const KvPages& kv, const KvRows& rows, int stride, float* to) {
  if (kv.code == RowCode::kQ8_0) {
    LoadBlockScales<BlockBytes(KvFormat::kQ8_0)>(rows, kv.scales_per_row, stride, to);
  } else if (kv.code == RowCode::kQ5_0) {
    LoadBlockScales<BlockBytes(KvFormat::kQ5_0)>(rows, kv.scales_per_row, stride, to);
  } else {
    static_assert(BlockBytes(KvFormat::kQ4_0) == BlockBytes(KvFormat::kIQ4NL));
    HWY_DASSERT(kv.code == RowCode::kQ4_0 || kv.code == RowCode::kIQ4NL);
    LoadBlockScales<BlockBytes(KvFormat::kQ4_0)>(rows, kv.scales_per_row, stride, to);
  }
}
#endif

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
