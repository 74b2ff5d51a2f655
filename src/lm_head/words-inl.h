// The arithmetic of the linear layer, and x as words of it. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_WORDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_WORDS_INL_H_
#undef RIFFLE_LM_HEAD_WORDS_INL_H_
#else
#define RIFFLE_LM_HEAD_WORDS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/dot_operands-inl.h"
#include "core/load-inl.h"
#include "core/round-inl.h"
#include "lm_head/linear_args.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::BF16Bits;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

using WordF32 = hn::CappedTag<float, 16>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(WordF32()));

// kLanes elements as f32.
template <DType kType>
HWY_INLINE hn::Vec<WordF32> LoadF32(const uint8_t* from) {
  const WordF32 df;
  if constexpr (kType == DType::kF32) {
    return LoadAny(df, from);
  } else if constexpr (kType == DType::kBF16) {
    return hn::PromoteTo(df, LoadAny(hn::Rebind<hwy::bfloat16_t, WordF32>(), from));
  } else {
    return FromF16(df, LoadAny(hn::Rebind<hwy::float16_t, WordF32>(), from));
  }
}

// Words of kChunk inputs of one row.
template <DType kType>
HWY_INLINE void ChunkToWords(const LayOutX& task, const uint8_t* from, uint8_t* to) {
  const WordF32 df;
  const hn::Rebind<uint16_t, WordF32> dh;
  for (int i = 0; i < kChunk; i += kLanes) {
    const auto value = LoadF32<kType>(from + static_cast<size_t>(i) * SizeOf(kType));
    if (!task.to_bf16) {
      hn::StoreU(value, df, reinterpret_cast<float*>(to) + i);
      continue;
    }
    const auto rounded = BF16Bits(df, value);
    if (task.words_of_bf16) {
      hn::StoreU(hn::TruncateTo(dh, rounded), dh, reinterpret_cast<uint16_t*>(to) + i);
    } else {
      hn::StoreU(hn::BitCast(df, hn::ShiftLeft<16>(rounded)), df, reinterpret_cast<float*>(to) + i);
    }
  }
}

template <DType kType>
void RowToWords(const LayOutX& task, int64_t row) {
  constexpr size_t kElement = SizeOf(kType);
  const uint8_t* from = task.x + (task.order != nullptr ? task.order[row] : row) * task.row_stride;
  const size_t word_bytes = task.words_of_bf16 ? 2 : 4;  // of one input
  for (int64_t begin = 0; begin < task.d; begin += kChunk) {
    const int64_t span = begin / kSpan;
    const auto place = static_cast<size_t>((span * task.rows + row) * kSpan + begin % kSpan);
    uint8_t* to = static_cast<uint8_t*>(task.words) + place * word_bytes;
    const uint8_t* chunk = from + static_cast<size_t>(begin) * kElement;
    if (begin + kChunk <= task.d) {
      ChunkToWords<kType>(task, chunk, to);
    } else {
      uint8_t tail[kChunk * kElement] = {};
      std::memcpy(tail, chunk, static_cast<size_t>(task.d - begin) * kElement);
      ChunkToWords<kType>(task, tail, to);
    }
  }
}

inline void RowToWordsAny(const LayOutX& task, int64_t row) {
  switch (task.dtype) {
    case DType::kF32:
      return RowToWords<DType::kF32>(task, row);
    case DType::kF16:
      return RowToWords<DType::kF16>(task, row);
    case DType::kBF16:
      return RowToWords<DType::kBF16>(task, row);
    default:
      HWY_DASSERT(false);  // CheckLinear refuses the others
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
