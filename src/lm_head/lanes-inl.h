// The vectors of the linear layer: kLanes 32-bit lanes, and elements loaded into them as f32.
// Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_LANES_INL_H_
#undef RIFFLE_LM_HEAD_LANES_INL_H_
#else
#define RIFFLE_LM_HEAD_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "core/load-inl.h"
#include "riffle/types.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

using LaneF32 = hn::CappedTag<float, 16>;
using LaneI32 = hn::RebindToSigned<LaneF32>;
using LaneU32 = hn::RebindToUnsigned<LaneF32>;
using VecF32 = hn::Vec<LaneF32>;
using VecI32 = hn::Vec<LaneI32>;
using VecU32 = hn::Vec<LaneU32>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(LaneF32()));

// Packed operands of W are stored in panels of kPanel columns: [kTile / kPanel][operands][kPanel].
constexpr int kPanel = 2 * kLanes;

// kLanes elements as f32.
template <DType kType>
HWY_INLINE VecF32 LoadF32(const uint8_t* from) {
  const LaneF32 df;
  if constexpr (kType == DType::kF32) {
    return LoadAny(df, from);
  } else if constexpr (kType == DType::kBF16) {
    return hn::PromoteTo(df, LoadAny(hn::Rebind<hwy::bfloat16_t, LaneF32>(), from));
  } else {
    return FromF16(df, LoadAny(hn::Rebind<hwy::float16_t, LaneF32>(), from));
  }
}

// Transposes a matrix of kLanes x kLanes lanes; each vector is a row.
HWY_INLINE void TransposeLanes(VecU32 (&v)[kLanes]) {
  const LaneU32 d;
  for (int i = 0; i < kLanes; i += 4) {  // transposes 4 x 4 lanes in each 16-byte block
    const auto even_low = hn::InterleaveLower(d, v[i], v[i + 2]);
    const auto even_high = hn::InterleaveUpper(d, v[i], v[i + 2]);
    const auto odd_low = hn::InterleaveLower(d, v[i + 1], v[i + 3]);
    const auto odd_high = hn::InterleaveUpper(d, v[i + 1], v[i + 3]);
    v[i] = hn::InterleaveLower(d, even_low, odd_low);
    v[i + 1] = hn::InterleaveUpper(d, even_low, odd_low);
    v[i + 2] = hn::InterleaveLower(d, even_high, odd_high);
    v[i + 3] = hn::InterleaveUpper(d, even_high, odd_high);
  }
  if constexpr (kLanes == 8) {  // then transposes the blocks
    for (int i = 0; i < 4; ++i) {
      const auto low = v[i];
      v[i] = hn::ConcatLowerLower(d, v[i + 4], low);
      v[i + 4] = hn::ConcatUpperUpper(d, v[i + 4], low);
    }
  } else if constexpr (kLanes == 16) {
    alignas(64) static constexpr uint32_t kEven[16] = {0,  1,  2,  3,  8,  9,  10, 11,
                                                       16, 17, 18, 19, 24, 25, 26, 27};
    alignas(64) static constexpr uint32_t kOdd[16] = {4,  5,  6,  7,  12, 13, 14, 15,
                                                      20, 21, 22, 23, 28, 29, 30, 31};
    const auto even = hn::SetTableIndices(d, kEven);
    const auto odd = hn::SetTableIndices(d, kOdd);
    for (int i = 0; i < 4; ++i) {
      const auto a = hn::ConcatLowerLower(d, v[i + 4], v[i]);
      const auto b = hn::ConcatLowerLower(d, v[i + 12], v[i + 8]);
      const auto c = hn::ConcatUpperUpper(d, v[i + 4], v[i]);
      const auto e = hn::ConcatUpperUpper(d, v[i + 12], v[i + 8]);
      v[i] = hn::TwoTablesLookupLanes(d, a, b, even);
      v[i + 4] = hn::TwoTablesLookupLanes(d, a, b, odd);
      v[i + 8] = hn::TwoTablesLookupLanes(d, c, e, even);
      v[i + 12] = hn::TwoTablesLookupLanes(d, c, e, odd);
    }
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
