// Rows of f32 stored in another dtype. Included once per SIMD target.
#if defined(RIFFLE_SPARSE_STORE_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_STORE_ROW_INL_H_
#undef RIFFLE_SPARSE_STORE_ROW_INL_H_
#else
#define RIFFLE_SPARSE_STORE_ROW_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "core/round-inl.h"
#include "sparse/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x[0, cols) as f32, f16 or bf16, rounded to the nearest, ties to even; `to` has any alignment.
HWY_INLINE void StoreRow(DType dtype, const float* x, int64_t cols, uint8_t* to) {
  const LaneF32 df;
  const hn::Rebind<uint16_t, LaneF32> du16;
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  alignas(64) float part[kLanes];
  alignas(64) uint8_t bytes[4 * kLanes];
  for (int64_t i = 0; i < cols; i += kLanes) {
    const auto count = std::min<int64_t>(kLanes, cols - i);
    std::memcpy(part, x + i, static_cast<size_t>(count) * sizeof(float));
    std::fill(part + count, part + kLanes, 0.0f);
    const auto value = hn::Load(df, part);
    if (dtype == DType::kF32) {
      hn::Store(value, df, reinterpret_cast<float*>(bytes));
    } else if (dtype == DType::kF16) {
      hn::Store(core::HWY_NAMESPACE::RoundToF16(df, value), du16,
                reinterpret_cast<uint16_t*>(bytes));
    } else {
      hn::Store(core::HWY_NAMESPACE::RoundToBF16(df, value), du16,
                reinterpret_cast<uint16_t*>(bytes));
    }
    std::memcpy(to + i * element, bytes, static_cast<size_t>(count * element));
  }
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
