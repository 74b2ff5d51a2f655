// Packs rows of x into operands of products. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PACK_X_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PACK_X_INL_H_
#undef RIFFLE_LM_HEAD_PACK_X_INL_H_
#else
#define RIFFLE_LM_HEAD_PACK_X_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/round-inl.h"
#include "lm_head/lanes-inl.h"
#include "lm_head/product_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::BF16Bits;

// Packs kInputGroup inputs of one row.
template <DType kType>
HWY_INLINE void PackInputGroup(const PackXTask& task, const uint8_t* from, uint8_t* to) {
  const LaneF32 df;
  const hn::Rebind<uint16_t, LaneF32> dh;
  for (int i = 0; i < kInputGroup; i += kLanes) {
    const auto value = LoadF32<kType>(from + static_cast<size_t>(i) * SizeOf(kType));
    if (!task.round_to_bf16) {
      hn::StoreU(value, df, reinterpret_cast<float*>(to) + i);
      continue;
    }
    const auto rounded = BF16Bits(df, value);
    if (task.bf16_pairs) {
      hn::StoreU(hn::TruncateTo(dh, rounded), dh, reinterpret_cast<uint16_t*>(to) + i);
    } else {
      hn::StoreU(hn::BitCast(df, hn::ShiftLeft<16>(rounded)), df, reinterpret_cast<float*>(to) + i);
    }
  }
}

template <DType kType>
void PackRowAs(const PackXTask& task, int64_t row) {
  constexpr size_t kElement = SizeOf(kType);
  const int64_t source = task.row_list != nullptr ? task.row_list[row] : row;
  const uint8_t* from = task.x + source * task.row_stride;
  const size_t input_bytes = task.bf16_pairs ? 2 : 4;
  for (int64_t begin = 0; begin < task.d; begin += kInputGroup) {
    const int64_t k_block = begin / kKBlock;
    const auto input = static_cast<size_t>((k_block * task.rows + row) * kKBlock + begin % kKBlock);
    uint8_t* to = static_cast<uint8_t*>(task.operands) + input * input_bytes;
    const uint8_t* group = from + static_cast<size_t>(begin) * kElement;
    if (begin + kInputGroup <= task.d) {
      PackInputGroup<kType>(task, group, to);
    } else {
      uint8_t tail[kInputGroup * kElement] = {};
      std::memcpy(tail, group, static_cast<size_t>(task.d - begin) * kElement);
      PackInputGroup<kType>(task, tail, to);
    }
  }
}

inline void PackRow(const PackXTask& task, int64_t row) {
  HWY_DASSERT(0 <= row && row < task.rows);
  HWY_DASSERT(task.round_to_bf16 || !task.bf16_pairs);
  switch (task.dtype) {
    case DType::kF32:
      return PackRowAs<DType::kF32>(task, row);
    case DType::kF16:
      return PackRowAs<DType::kF16>(task, row);
    case DType::kBF16:
      return PackRowAs<DType::kBF16>(task, row);
    default:
      HWY_DASSERT(false);  // CheckLinear rejects the other dtypes
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
