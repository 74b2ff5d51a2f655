// Packing rows of queries for the kernels. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_QUERY_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_QUERY_BLOCK_INL_H_
#undef RIFFLE_ATTENTION_QUERY_BLOCK_INL_H_
#else
#define RIFFLE_ATTENTION_QUERY_BLOCK_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/dot-inl.h"
#include "core/bf16_dot.h"
#include "core/load-inl.h"
#include "riffle/types.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;

// Loads four operands of a row of q, from operand w on, and multiplies them by a sign (1, -1 or 0).
template <DType kDType>
struct FloatQuery {
  float sign;

  HWY_INLINE hn::Vec<FloatTag<4>> Load(const uint8_t* row, int w) const {
    const FloatTag<4> df;
    if constexpr (kDType == DType::kF32) {
      return LoadAny(df, row + 4 * w);
    } else if constexpr (kDType == DType::kBF16) {
      const hn::Rebind<hwy::bfloat16_t, FloatTag<4>> dh;
      return hn::PromoteTo(df, LoadAny(dh, row + 2 * w));
    } else {
      const hn::Rebind<hwy::float16_t, FloatTag<4>> dh;
      return FromF16(df, LoadAny(dh, row + 2 * w));
    }
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Signed(D d, hn::Vec<D> x) const {
    return hn::Mul(x, hn::Set(d, sign));
  }
};

#if RIFFLE_BF16_DOT
// The same for operands of two bf16; elements of other types are rounded to bf16.
template <DType kDType>
struct PairQuery {
  uint32_t keep;
  uint32_t flip;

  HWY_INLINE hn::Vec<hn::CappedTag<uint32_t, 4>> Load(const uint8_t* row, int w) const {
    const hn::CappedTag<uint32_t, 4> du;
    if constexpr (kDType == DType::kBF16) {
      return LoadAny(du, row + 4 * w);
    } else {
      const FloatQuery<kDType> query{1.0f};
      const hn::Repartition<hwy::bfloat16_t, decltype(du)> dbf;
      return hn::BitCast(
          du, hn::OrderedDemote2To(dbf, query.Load(row, 2 * w), query.Load(row, 2 * w + 4)));
    }
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Signed(D d, hn::Vec<D> x) const {
    return hn::Xor(hn::And(x, hn::Set(d, keep)), hn::Set(d, flip));
  }
};
#endif

// Operands [w, w + 4) of rows[0], rows[4], rows[8], ... side by side.
template <class D, class Query>
HWY_INLINE hn::Vec<D> LoadEveryFourth(D d, const Query& query, const uint8_t* const* rows, int w) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    // volatile forces a reload: otherwise the compiler hoists 16 pointers and spills them into
    // vector registers.
    return query.Load(*const_cast<const uint8_t* const volatile*>(rows), w);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, LoadEveryFourth(half, query, rows + hn::MaxLanes(half), w),
                       LoadEveryFourth(half, query, rows, w));
  }
}

// to[w][lane] = operand w of rows[lane]. Four operands of a vector of rows are transposed in
// registers: stores of single operands, each to a line of its own, were 8 % of a prefill in f32.
template <class D, class Query, typename Operand = hn::TFromD<D>>
HWY_INLINE void TransposeRows(D d, const Query& query, const uint8_t* const* rows, int operands,
                              int lanes, Operand* HWY_RESTRICT to) {
  constexpr int kN = static_cast<int>(hn::MaxLanes(D()));
  for (int w = 0; w < operands; w += 4, to += 4 * lanes) {
    for (int lane = 0; lane < lanes; lane += kN) {
      const auto row = [&](int i) HWY_ATTR {
        return query.Signed(d, LoadEveryFourth(d, query, rows + lane + i, w));
      };
      const auto row0 = row(0);
      const auto row1 = row(1);
      const auto row2 = row(2);
      const auto row3 = row(3);
      const auto even01 = hn::InterleaveLower(d, row0, row2);  // rows 0 and 2, operands 0 and 1
      const auto odd01 = hn::InterleaveLower(d, row1, row3);
      const auto even23 = hn::InterleaveUpper(d, row0, row2);
      const auto odd23 = hn::InterleaveUpper(d, row1, row3);
      hn::Store(hn::InterleaveLower(d, even01, odd01), d, to + lane);
      hn::Store(hn::InterleaveUpper(d, even01, odd01), d, to + lanes + lane);
      hn::Store(hn::InterleaveLower(d, even23, odd23), d, to + 2 * lanes + lane);
      hn::Store(hn::InterleaveUpper(d, even23, odd23), d, to + 3 * lanes + lane);
    }
  }
}

template <class Query, typename Operand>
HWY_INLINE void TransposeTile(const Query& query, const uint8_t* const* rows, int operands,
                              int lanes, Operand* to) {
  if (lanes == 4) {
    TransposeRows(hn::CappedTag<Operand, 4>(), query, rows, operands, lanes, to);
  } else if (lanes == 8) {
    TransposeRows(hn::CappedTag<Operand, 8>(), query, rows, operands, lanes, to);
  } else {
    TransposeRows(hn::CappedTag<Operand, 16>(), query, rows, operands, lanes, to);
  }
}

// Queries of a tile times `sign` (1, -1 or 0) as operands to[operands][lanes].
//   rows  [lanes], in `dtype`; `operands` is a multiple of 4
HWY_INLINE void PackQueryRows(F32Math, DType dtype, const uint8_t* const* rows, int operands,
                              float sign, int lanes, float* to) {
  if (dtype == DType::kF32) {
    TransposeTile(FloatQuery<DType::kF32>{sign}, rows, operands, lanes, to);
  } else if (dtype == DType::kBF16) {
    TransposeTile(FloatQuery<DType::kBF16>{sign}, rows, operands, lanes, to);
  } else {
    TransposeTile(FloatQuery<DType::kF16>{sign}, rows, operands, lanes, to);
  }
}

#if RIFFLE_BF16_DOT
HWY_INLINE void PackQueryRows(BF16Math, DType dtype, const uint8_t* const* rows, int operands,
                              float sign, int lanes, uint32_t* to) {
  const uint32_t keep = sign == 0 ? 0 : ~0u;
  const uint32_t flip = sign < 0 ? 0x80008000u : 0;
  if (dtype == DType::kF32) {
    TransposeTile(PairQuery<DType::kF32>{keep, flip}, rows, operands, lanes, to);
  } else if (dtype == DType::kBF16) {
    TransposeTile(PairQuery<DType::kBF16>{keep, flip}, rows, operands, lanes, to);
  } else {
    TransposeTile(PairQuery<DType::kF16>{keep, flip}, rows, operands, lanes, to);
  }
}
#endif

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
