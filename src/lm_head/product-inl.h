// Rows of x times a span of a tile of W, as register-blocked outer products: every sum is one chain
// in the order of the inputs, in a lane of its own, whatever the blocking and the vector length.
// Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_PRODUCT_INL_H_
#undef RIFFLE_LM_HEAD_PRODUCT_INL_H_
#else
#define RIFFLE_LM_HEAD_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include "lm_head/words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x and W of a span, and the sums they are added to.
template <class Math>
struct SpanProduct {
  const typename Math::Word* x;  // [rows][Math::kSpanWords]
  const typename Math::Word* w;  // [words][kTile]
  const float* scales;           // Q8_0: [words / words of a block][kTile]
  float* sums;                   // [rows][kTile]
  int rows;
  int words;
  bool first;  // sums are not there yet
};

// Dense weights: sums (+)= one chain over the span. Q8_0: a chain a block, times its scale.
template <class Math, bool kQ8, int kRows, int kVecs>
HWY_INLINE void ProductKernel(const SpanProduct<Math>& span, int row, int column) {
  const WordF32 df;
  using Word = typename Math::Word;
  using V = hn::Vec<WordF32>;
  const hn::Rebind<Word, WordF32> dw;
  const Word* HWY_RESTRICT x = span.x + row * Math::kSpanWords;
  const Word* HWY_RESTRICT w = span.w + column;
  float* HWY_RESTRICT sums = span.sums + row * kTile + column;
  constexpr int kBlock = static_cast<int>(kQ8Block) / Math::kPerWord;
  V total[kRows][kVecs];
  if constexpr (kQ8) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) {
        total[r][v] = span.first ? hn::Zero(df) : hn::Load(df, sums + r * kTile + v * kLanes);
      }
    }
  }
  const int chain = kQ8 ? kBlock : span.words;
  for (int begin = 0; begin < span.words; begin += chain) {
    V sum[kRows][kVecs];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) {
        sum[r][v] = hn::Zero(df);
      }
    }
    for (int i = begin; i < begin + chain; ++i, w += kTile) {
      hn::Vec<decltype(dw)> weights[kVecs];
      for (int v = 0; v < kVecs; ++v) {
        weights[v] = hn::Load(dw, w + v * kLanes);
      }
      for (int r = 0; r < kRows; ++r) {
        const Word value = x[r * Math::kSpanWords + i];
        for (int v = 0; v < kVecs; ++v) {
          sum[r][v] = Math::Step(df, value, weights[v], sum[r][v]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) {
        float* at = sums + r * kTile + v * kLanes;
        if constexpr (kQ8) {
          const float* scales = span.scales + begin / kBlock * kTile + column + v * kLanes;
          total[r][v] = hn::MulAdd(hn::Load(df, scales), sum[r][v], total[r][v]);
        } else {
          hn::Store(span.first ? sum[r][v] : hn::Add(hn::Load(df, at), sum[r][v]), df, at);
        }
      }
    }
  }
  if constexpr (kQ8) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVecs; ++v) {
        hn::Store(total[r][v], df, sums + r * kTile + v * kLanes);
      }
    }
  }
}

// kRows or fewer rows.
template <class Math, bool kQ8, int kVecs, int kRows>
HWY_INLINE void ProductRows(const SpanProduct<Math>& span, int row, int rows, int column) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return ProductRows<Math, kQ8, kVecs, kRows - 1>(span, row, rows, column);
    }
  }
  ProductKernel<Math, kQ8, kRows, kVecs>(span, row, column);
}

template <class Math, bool kQ8>
void Product(const SpanProduct<Math>& span) {
  // Sums in registers: 24 of 32, or 12 of 16. Q8_0 keeps two for each result.
  constexpr int kSums = (HWY_CAP_GE512 ? 24 : 12) / (kQ8 ? 2 : 1);
  constexpr int kFew = kSums / 4;  // rows that get by with four vectors of columns
  constexpr int kMany = kSums / 2;
  if (span.rows <= kFew) {
    for (int column = 0; column < kTile; column += 4 * kLanes) {
      ProductRows<Math, kQ8, 4, kFew>(span, 0, span.rows, column);
    }
    return;
  }
  const int groups = (span.rows + kMany - 1) / kMany;
  for (int column = 0; column < kTile; column += 2 * kLanes) {
    for (int group = 0; group < groups; ++group) {  // of about the same size
      const int begin = span.rows * group / groups;
      const int end = span.rows * (group + 1) / groups;
      ProductRows<Math, kQ8, 2, kMany>(span, begin, end - begin, column);
    }
  }
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
