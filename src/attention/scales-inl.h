// Scales of keys and values. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_SCALES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_SCALES_INL_H_
#undef RIFFLE_ATTENTION_SCALES_INL_H_
#else
#define RIFFLE_ATTENTION_SCALES_INL_H_
#endif

#include <hwy/highway.h>

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

// The row's scale at `offset`. Rows that no query sees have scales of 0 wherever they are looked
// for.
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

// The same where the rows lie in one page: no pointer to each of them, nor small stores that a
// vector load must wait for.
HWY_INLINE void LoadNumbersOfRun(DType dtype, [[maybe_unused]] bool of_blocks, const RowRun& run,
                                 int64_t offset, float* HWY_RESTRICT to) {
  const FloatTag<16> df;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  const uint8_t* from = run.data + offset;
  if (dtype == DType::kF32 && run.stride == sizeof(float)) {
    for (int i = 0; i < kGroupKeys; i += kN) {
      hn::Store(LoadAny(df, from + static_cast<size_t>(i) * sizeof(float)), df, to + i);
    }
    return;
  }
#if HWY_CAP_GE512
  // The scales of blocks: the two bytes after each are the block's too, and read beside it.
  if (of_blocks && run.stride > -(1 << 26) && run.stride < (1 << 26)) {
    const hn::RebindToSigned<decltype(df)> di;
    const hn::Rebind<uint16_t, decltype(df)> du16;
    const hn::Rebind<hwy::float16_t, decltype(df)> df16;
    const auto at = hn::Mul(hn::Iota(di, 0), hn::Set(di, static_cast<int32_t>(run.stride)));
    const auto words = hn::GatherOffset(di, reinterpret_cast<const int32_t*>(from), at);
    const auto halves =
        hn::TruncateTo(du16, hn::BitCast(hn::RebindToUnsigned<decltype(df)>(), words));
    hn::Store(FromF16(df, hn::BitCast(df16, halves)), df, to);
    return;
  }
#endif
  KvRows rows;
  for (int i = 0; i < kGroupKeys; ++i) {
    rows.row[i] = run.data + i * run.stride;
  }
  LoadNumbers(dtype, rows, offset, to);
}

#if HWY_CAP_GE512
// Whether LoadBlockScales takes rows of these blocks.
HWY_INLINE bool TakesFourBlocks(const KvPages& kv) {
  return IsBlocks(kv.code) && !HasOffsets(kv.code) && kv.groups % 4 == 0;
}

// Where the scales of four blocks are: in a window of 64 bytes from the first block on, or in a
// second one that ends with the last scale.
struct BlockWindows {
  alignas(64) uint16_t index[32] = {};  // [4 blocks][8 rows]: the word of the window
  uint32_t in_second = 0;               // lanes
  int second = 0;                       // bytes before the second window; 0: there is none

  explicit BlockWindows(int block) {
    second = HWY_MAX(0, 3 * block + 2 - 64);
    for (int lane = 0; lane < 32; ++lane) {
      const int offset = lane / 8 * block;
      in_second |= offset + 2 > 64 ? 1u << lane : 0;
      index[lane] = static_cast<uint16_t>((offset + 2 > 64 ? offset - second : offset) / 2);
    }
  }
};

// to[g * stride + i] = scale g of row i of blocks, four blocks at a time: one permutation takes
// their scales out of a window of a row. (Gathers of single scales took a tenth of a decode over
// Q4_0.)
HWY_INLINE void LoadBlockScales(const KvPages& kv, const BlockWindows& windows, const RowRun& run,
                                int stride, float* HWY_RESTRICT to) {
  const hn::CappedTag<uint16_t, 32> d;
  const FloatTag<16> df;
  const hn::Rebind<uint16_t, decltype(df)> dh;
  const hn::Rebind<hwy::float16_t, decltype(df)> df16;
  const int block = static_cast<int>(kv.scale_group_stride);
  const int second = windows.second;
  const uint32_t in_second = windows.in_second;
  const auto indices = hn::SetTableIndices(d, windows.index);
  for (int g = 0; g < kv.groups; g += 4, to += 4 * stride) {
    hn::Vec<decltype(d)> scales[2];
    for (int half = 0; half < 2; ++half) {
      auto found = hn::Zero(d);
      for (int i = 0; i < 8; ++i) {
        const uint8_t* row = run.data + (half * 8 + i) * run.stride + g * block;
        const uint32_t lanes = 0x01010101u << i;
        const auto take = [&](const uint8_t* window, uint64_t bits) HWY_ATTR {
          uint8_t mask[8];
          std::memcpy(mask, &bits, sizeof(mask));
          const auto words = hn::TableLookupLanes(LoadAny(d, window), indices);
          found = hn::IfThenElse(hn::LoadMaskBits(d, mask), words, found);
        };
        take(row, lanes & ~in_second);
        if (second > 0) {
          take(row + second, lanes & in_second);
        }
      }
      scales[half] = found;
    }
    const auto store = [&](auto block_of, float* at) HWY_ATTR {
      constexpr int kBlockOf = decltype(block_of)::value;
      const auto halves = hn::Combine(dh, hn::ExtractBlock<kBlockOf>(scales[1]),
                                      hn::ExtractBlock<kBlockOf>(scales[0]));
      hn::Store(FromF16(df, hn::BitCast(df16, halves)), df, at);
    };
    store(std::integral_constant<int, 0>(), to);
    store(std::integral_constant<int, 1>(), to + stride);
    store(std::integral_constant<int, 2>(), to + 2 * stride);
    store(std::integral_constant<int, 3>(), to + 3 * stride);
  }
}
#endif

// to[g * stride + i] = scale g of row i, divided by its divisor, for all groups of a row; then, of
// block formats that have them, the offsets likewise. load(offset, to) loads 16 numbers.
template <class Load>
HWY_INLINE void LoadScales(const KvPages& kv, int stride, float* HWY_RESTRICT to,
                           const Load& load) {
  const FloatTag<16> df;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  for (int g = 0; g < kv.groups; ++g, to += stride) {
    load(g * kv.scale_group_stride, to);
    if (kv.scale_divisor != 1.0f) {
      const auto divisor = hn::Set(df, kv.scale_divisor);
      for (int i = 0; i < kGroupKeys; i += kN) {
        hn::Store(hn::Div(hn::Load(df, to + i), divisor), df, to + i);
      }
    }
  }
  for (int g = 0; HasOffsets(kv.code) && g < kv.groups; ++g, to += stride) {
    load(g * kv.scale_group_stride + 2, to);
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
