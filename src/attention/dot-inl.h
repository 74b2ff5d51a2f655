// The two products of attention as register-blocked outer products: every result is one chain of
// fused multiply-adds in the order of its inner index, in a lane of its own, whatever the blocking
// and the vector length. That is what makes decode and prefill agree to the last bit.
// Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_DOT_INL_H_
#undef RIFFLE_ATTENTION_DOT_INL_H_
#else
#define RIFFLE_ATTENTION_DOT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

#include "core/words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <int kLanes>
using FloatTag = hn::CappedTag<float, kLanes>;

struct F32Math : FloatWords {
  static constexpr bool kDirect = false;       // kernels of few_rows-inl.h
  static constexpr int kKeyStride = 512 + 16;  // words; not a multiple of 4 KiB: no aliasing
};

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
struct BF16Math : PairWords {
  static constexpr bool kDirect = true;
  static constexpr int kKeyStride = 256 + 16;
};
#endif

// Rows of memory that are going to be needed, brought into L2 while a kernel runs: one prefetch in
// every few products keeps memory busy all the time, where bursts between kernels leave it idle
// during them (decode at four rows: 0.6 of the read bandwidth by bursts).
struct Ahead {
  const uint8_t* const* rows = nullptr;  // as many as the kernel has rows of keys or values
  int step = 0;                          // bytes of 16 words in memory
  int offset = 0;                        // bytes, of the columns in hand
};

// scores[key][lane] = sum over w of keys[key][w] * q[w][lane], kKeys keys, kVecs vectors of lanes.
//   q       [words][lanes], aligned    keys  [kKeys][Math::kKeyStride]
//   scores  [kKeys][lanes], aligned
//   kAhead  prefetch ahead.rows[0, 16)
template <class Math, int kKeys, int kVecs, bool kAhead, class DF,
          typename Word = typename Math::Word>
HWY_INLINE void ScoreKernel(DF df, const Word* HWY_RESTRICT q, int lanes,
                            const Word* HWY_RESTRICT keys, int words, float* HWY_RESTRICT scores,
                            const Ahead& ahead) {
  const hn::Rebind<Word, DF> dw;
  constexpr size_t kN = hn::MaxLanes(DF());
  hn::Vec<DF> sum[kKeys][kVecs];
  for (auto& key : sum) {
    for (auto& s : key) {
      s = hn::Zero(df);
    }
  }
  for (int w = 0; w < words; ++w, q += lanes) {
    hn::Vec<decltype(dw)> x[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      x[v] = hn::Load(dw, q + v * kN);
    }
    if constexpr (kAhead) {
      PrefetchAt(ahead.rows[w & 15], (w >> 4) * ahead.step);
    }
    for (int key = 0; key < kKeys; ++key) {
      const Word k = keys[key * Math::kKeyStride + w];
      for (int v = 0; v < kVecs; ++v) {
        sum[key][v] = Math::Step(df, k, x[v], sum[key][v]);
      }
    }
  }
  for (int key = 0; key < kKeys; ++key) {
    for (int v = 0; v < kVecs; ++v) {
      hn::Store(sum[key][v], df, scores + key * lanes + v * kN);
    }
  }
}

// Scores of 16 keys against a tile of `lanes` rows. Tiles of up to 16 lanes prefetch.
template <class Math, typename Word = typename Math::Word>
HWY_INLINE void Scores16(const Word* q, int lanes, const Word* keys, int words, float* scores,
                         const Ahead& ahead) {
  // Sums in registers: 16 of 32, or 8 of 16.
  constexpr int kSums = HWY_CAP_GE512 ? 16 : 8;
  const auto all = [&](auto df, auto vecs, auto prefetch) HWY_ATTR {
    constexpr int kVecs = decltype(vecs)::value;
    constexpr int kKeys = kSums / kVecs;
    constexpr int kStep = kVecs * static_cast<int>(hn::MaxLanes(df));
    for (int lane = 0; lane < lanes; lane += kStep) {
      for (int key = 0; key < 16; key += kKeys) {
        ScoreKernel<Math, kKeys, kVecs, decltype(prefetch)::value>(
            df, q + lane, lanes, keys + key * Math::kKeyStride, words, scores + key * lanes + lane,
            ahead);
      }
    }
  };
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  if (lanes == 4) {
    all(FloatTag<4>(), One(), std::true_type());
  } else if (lanes == 8) {
    all(FloatTag<8>(), One(), std::true_type());
  } else if (lanes == 16) {
    all(FloatTag<16>(), One(), std::true_type());
  } else {
    all(FloatTag<16>(), Two(), std::false_type());
  }
}

// sums[row][column] += sum over s of p[s][row] * v[s][column], kRows rows, kVecs vectors of
// columns.
//   p  [steps][lanes]    v  [steps][columns], aligned    sums  [kRows][columns], aligned
//   fresh   sums are written, not added to: the first keys of a span
//   kAhead  prefetch the columns' bytes of ahead.rows[0, steps * kPerWord)
template <class Math, int kRows, int kVecs, bool kAhead, class DF,
          typename Word = typename Math::Word>
HWY_INLINE void ValueKernel(DF df, const Word* HWY_RESTRICT p, int lanes,
                            const Word* HWY_RESTRICT v, int columns, int steps, bool fresh,
                            float* HWY_RESTRICT sums, const Ahead& ahead) {
  const hn::Rebind<Word, DF> dw;
  constexpr size_t kN = hn::MaxLanes(DF());
  constexpr int kPerWord = Math::kPerWord;
  // Of 64 bytes that the columns take in a row; half of them twice if f32 is made of 16 bits.
  constexpr int kLines = (kVecs * kN + 16 * kPerWord - 1) / (16 * kPerWord);
  hn::Vec<DF> sum[kRows][kVecs];
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      sum[row][i] = fresh ? hn::Zero(df) : hn::Load(df, sums + row * columns + i * kN);
    }
  }
  for (int s = 0; s < steps; ++s, p += lanes, v += columns) {
    hn::Vec<decltype(dw)> x[kVecs];
    for (int i = 0; i < kVecs; ++i) {
      x[i] = hn::Load(dw, v + i * kN);
    }
    if constexpr (kAhead) {
      for (int i = 0; i < kPerWord; ++i) {
        for (int line = 0; line < kLines; ++line) {
          PrefetchAt(ahead.rows[s * kPerWord + i], ahead.offset + line * ahead.step);
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      const Word a = p[row];
      for (int i = 0; i < kVecs; ++i) {
        sum[row][i] = Math::Step(df, a, x[i], sum[row][i]);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      hn::Store(sum[row][i], df, sums + row * columns + i * kN);
    }
  }
}

// Up to 4 rows.
template <class Math, int kVecs, bool kAhead, class DF, typename Word = typename Math::Word>
HWY_INLINE void FewValueRows(DF df, const Word* p, int lanes, int rows, const Word* v, int columns,
                             int steps, bool fresh, float* sums, const Ahead& ahead) {
  if (rows == 4) {
    ValueKernel<Math, 4, kVecs, kAhead>(df, p, lanes, v, columns, steps, fresh, sums, ahead);
  } else if (rows == 3) {
    ValueKernel<Math, 3, kVecs, kAhead>(df, p, lanes, v, columns, steps, fresh, sums, ahead);
  } else if (rows == 2) {
    ValueKernel<Math, 2, kVecs, kAhead>(df, p, lanes, v, columns, steps, fresh, sums, ahead);
  } else {
    ValueKernel<Math, 1, kVecs, kAhead>(df, p, lanes, v, columns, steps, fresh, sums, ahead);
  }
}

// Rows by fours; the first of them prefetch, if any do.
template <class Math, int kVecs, bool kAhead, class DF, typename Word = typename Math::Word>
HWY_INLINE void ValueRows(DF df, const Word* p, int lanes, int rows, const Word* v, int columns,
                          int steps, bool fresh, float* sums, const Ahead& ahead) {
  FewValueRows<Math, kVecs, kAhead>(df, p, lanes, rows < 4 ? rows : 4, v, columns, steps, fresh,
                                    sums, ahead);
  for (int row = 4; row < rows; row += 4) {
    FewValueRows<Math, kVecs, false>(df, p + row, lanes, rows - row < 4 ? rows - row : 4, v,
                                     columns, steps, fresh, sums + row * columns, ahead);
  }
}

// sums[row][column] += p * v for all columns, or = if they are fresh; `columns` is a multiple
// of 32.
template <class Math, bool kAhead, typename Word = typename Math::Word>
HWY_INLINE void AddValues(const Word* p, int lanes, int rows, const Word* v, int columns, int steps,
                          bool fresh, float* sums, Ahead ahead) {
  const FloatTag<16> df;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  constexpr int kWide = HWY_CAP_GE512 ? 4 : 2;
  constexpr int kNarrow = 32 / kN < kWide ? 32 / kN : kWide;
  const auto at = [&ahead](int column) HWY_ATTR {
    ahead.offset = column / (16 * Math::kPerWord) * ahead.step;
    return ahead;
  };
  int column = 0;
  for (; column + kWide * kN <= columns; column += kWide * kN) {
    ValueRows<Math, kWide, kAhead>(df, p, lanes, rows, v + column, columns, steps, fresh,
                                   sums + column, at(column));
  }
  for (; column < columns; column += kNarrow * kN) {
    ValueRows<Math, kNarrow, kAhead>(df, p, lanes, rows, v + column, columns, steps, fresh,
                                     sums + column, at(column));
  }
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
