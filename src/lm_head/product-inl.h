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

#include "lm_head/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::PrefetchAt;

template <class Math>
constexpr int kSpanWords = kSpan / Math::kPerOperand;

// x and W of a span, and the sums they are added to.
template <class Math>
struct SpanProduct {
  using Word = typename Math::Word;
  const Word* x;  // [rows][kSpanWords<Math>]
  const Word* w;  // panels [kTile / kPanel][words][kPanel]; of few rows: none
  float* sums;    // [rows][kTile]
  int rows;
  int words;
};

// What a kernel prefetches: one line of each of some columns while it goes through the words of a
// line, and of columns `step` further on as well.
struct KernelAhead {
  const uint8_t* const* column = nullptr;
  int each = 0;  // how many; 0: none
  int step = 0;
  int words = 0;           // of a line
  int64_t line = 0;        // bytes from one to the next
  int64_t first_byte = 0;  // of the first in a column's span
};

template <class Source>
constexpr KernelAhead AheadOf() {
  KernelAhead ahead;
  ahead.words = Source::kPerLine;
  ahead.line = Source::kQ8 ? kQ8BlockBytes : 64;
  ahead.first_byte = Source::Offset(0);
  return ahead;
}

// Dense weights: sums += one chain over the span. Q8_0: a chain a block, times its scale. (As a
// function of its own, not inlined, it takes 4 % longer at 256 rows.)
template <class Math, bool kQ8, bool kAhead, int kRows>
HWY_INLINE void ProductKernel(const SpanProduct<Math>& span, const TileSpan& tile, int row,
                              int column, const KernelAhead& ahead) {
  const WordF32 df;
  using Word = typename Math::Word;
  using V = hn::Vec<WordF32>;
  const hn::Rebind<Word, WordF32> dw;
  const Word* HWY_RESTRICT x = span.x + row * kSpanWords<Math>;
  const Word* HWY_RESTRICT w = span.w + column * span.words;
  float* HWY_RESTRICT sums = span.sums + row * kTile + column;
  V sum[kRows][2];
  V total[kRows][2];  // Q8_0: in registers all the way
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      sum[r][v] = hn::Zero(df);
      total[r][v] = kQ8 ? hn::Load(df, sums + r * kTile + v * kLanes) : sum[r][v];
    }
  }
  constexpr int kBlock = static_cast<int>(kQ8Block) / Math::kPerOperand;
  const int line = kQ8 ? kBlock : kAhead ? ahead.words : span.words;
  int64_t byte = ahead.first_byte;
  for (int begin = 0; begin < span.words; begin += line, byte += ahead.line) {
    [[maybe_unused]] const int64_t prefetched = tile.Prefetched(byte);
    for (int i = 0; i < line; ++i, w += kPanel, ++x) {
      if constexpr (kAhead) {  // a test for it at every step took 5 % of the time of 256 rows
        for (int j = 0; j < ahead.each; ++j) {
          PrefetchAt(ahead.column[i + j * ahead.step], prefetched);
        }
      }
      const auto w0 = hn::Load(dw, w);
      const auto w1 = hn::Load(dw, w + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Word value = x[r * kSpanWords<Math>];
        sum[r][0] = Math::Step(df, value, w0, sum[r][0]);
        sum[r][1] = Math::Step(df, value, w1, sum[r][1]);
      }
    }
    if constexpr (kQ8) {
      const float* scales = tile.scales + begin / kBlock * kTile + column;
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < 2; ++v) {
          total[r][v] = hn::MulAdd(hn::Load(df, scales + v * kLanes), sum[r][v], total[r][v]);
          sum[r][v] = hn::Zero(df);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < 2; ++v) {
      float* at = sums + r * kTile + v * kLanes;
      hn::Store(kQ8 ? total[r][v] : hn::Add(hn::Load(df, at), sum[r][v]), df, at);
    }
  }
}

// kRows or fewer rows.
template <class Math, bool kQ8, bool kAhead, int kRows>
HWY_INLINE void ProductRows(const SpanProduct<Math>& span, const TileSpan& tile, int row, int rows,
                            int column, const KernelAhead& ahead) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return ProductRows<Math, kQ8, kAhead, kRows - 1>(span, tile, row, rows, column, ahead);
    }
  }
  ProductKernel<Math, kQ8, kAhead, kRows>(span, tile, row, column, ahead);
}

// Many rows: W laid out once, then read for each group of rows.
template <class Math, class Source>
void Product(const SpanProduct<Math>& span, const TileSpan& tile, bool prefetch) {
  // Sums in registers: 24 of 32, or 12 of 16. Q8_0 keeps two for each result.
  constexpr int kRows = (HWY_CAP_GE512 ? 12 : 6) / (Source::kQ8 ? 2 : 1);
  const int groups = (span.rows + kRows - 1) / kRows;
  // The first kernels prefetch: kPerLine columns each, or a multiple of them.
  constexpr int kParts = kTile / Source::kPerLine;
  const int kernels = kTile / kPanel * groups;
  const int prefetching = kernels < kParts ? kernels : kParts;
  int kernel = 0;
  for (int column = 0; column < kTile; column += kPanel) {
    for (int group = 0; group < groups; ++group, ++kernel) {  // of about the same size
      const int begin = span.rows * group / groups;
      const int end = span.rows * (group + 1) / groups;
      if (prefetch && kernel < prefetching) {
        KernelAhead ahead = AheadOf<Source>();
        ahead.column = tile.column + kernel * Source::kPerLine;
        ahead.each = (kParts + prefetching - 1 - kernel) / prefetching;
        ahead.step = prefetching * Source::kPerLine;
        ProductRows<Math, Source::kQ8, true, kRows>(span, tile, begin, end - begin, column, ahead);
      } else {
        ProductRows<Math, Source::kQ8, false, kRows>(span, tile, begin, end - begin, column, {});
      }
    }
  }
}

// Few rows: W as it lies, transposed in registers. kGroups: groups of kLanes columns whose chains
// run side by side.
template <class Math, class Source, int kRows, int kGroups>
HWY_INLINE void FewRowsKernel(const SpanProduct<Math>& span, const TileSpan& tile, int column) {
  const WordF32 df;
  const hn::Rebind<typename Math::Word, WordF32> dw;
  using V = hn::Vec<WordF32>;
  using S = Step<Source>;
  const int rows = span.rows;  // those missing to kRows repeat the first
  const typename Math::Word* x[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = span.x + (r < rows ? r : 0) * kSpanWords<Math>;
  }
  constexpr int kBlock = static_cast<int>(kQ8Block) / Math::kPerOperand;
  V sum[kGroups][kRows];
  V total[kGroups][kRows];
  float* sums = span.sums + column;
  for (int g = 0; g < kGroups; ++g) {
    for (int r = 0; r < kRows; ++r) {
      sum[g][r] = hn::Zero(df);
      const float* at = sums + (r < rows ? r : 0) * kTile + g * kLanes;
      total[g][r] = Source::kQ8 ? hn::Load(df, at) : sum[g][r];
    }
  }
  for (int i = 0; i < span.words; i += S::kWords) {
    for (int g = 0; g < kGroups; g += S::kGroups) {
      WordVec v[kLanes];
      S::template Load</*kPrefetch=*/true>(tile, column + g * kLanes, i, v);
      for (int j = 0; j < S::kWords; ++j) {
        for (int of = 0; of < S::kGroups; ++of) {
          const auto w = hn::BitCast(dw, v[of * S::kWords + j]);
          for (int r = 0; r < kRows; ++r) {
            sum[g + of][r] = Math::Step(df, x[r][i + j], w, sum[g + of][r]);
          }
        }
      }
    }
    if (Source::kQ8 && (i + S::kWords) % kBlock == 0) {
      const float* scales = tile.scales + i / kBlock * kTile + column;
      for (int g = 0; g < kGroups; ++g) {
        const auto scale = hn::Load(df, scales + g * kLanes);
        for (int r = 0; r < kRows; ++r) {
          total[g][r] = hn::MulAdd(scale, sum[g][r], total[g][r]);
          sum[g][r] = hn::Zero(df);
        }
      }
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    for (int r = 0; r < kRows && r < rows; ++r) {
      float* at = sums + r * kTile + g * kLanes;
      hn::Store(Source::kQ8 ? total[g][r] : hn::Add(hn::Load(df, at), sum[g][r]), df, at);
    }
  }
}

template <class Math, class Source, int kRows>
HWY_INLINE void FewRowsColumns(const SpanProduct<Math>& span, const TileSpan& tile) {
  // Two groups where their sums fit in registers beside the kLanes vectors of W, or a step has two.
  constexpr bool kTwo = kRows * (Source::kQ8 ? 2 : 1) <= (HWY_CAP_GE512 ? 4 : 1);
  constexpr int kGroups = kTwo || Step<Source>::kGroups == 2 ? 2 : 1;
  for (int column = 0; column < kTile; column += kGroups * kLanes) {
    FewRowsKernel<Math, Source, kRows, kGroups>(span, tile, column);
  }
}

inline constexpr int kFewRows = 4;

// Pre: span.rows <= kFewRows; tile.inputs is a multiple of kChunk.
template <class Math, class Source>
void FewRows(const SpanProduct<Math>& span, const TileSpan& tile) {
  if (span.rows == 1) {
    FewRowsColumns<Math, Source, 1>(span, tile);
  } else if (span.rows == 2) {
    FewRowsColumns<Math, Source, 2>(span, tile);
  } else {
    FewRowsColumns<Math, Source, kFewRows>(span, tile);
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
