// The product of probabilities and values. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_VALUES_INL_H_
#undef RIFFLE_ATTENTION_VALUES_INL_H_
#else
#define RIFFLE_ATTENTION_VALUES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "attention/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::PrefetchAt;

// Probabilities and values of some keys, and what they are added to.
template <class Math>
struct ValueProduct {
  using Operand = typename Math::Operand;

  const Operand* p;  // [steps][lanes]
  int lanes;
  const Operand* v;  // [steps][stride], aligned
  int stride;
  int steps;
  float* sums;       // [rows][columns], aligned
  int columns;       // a multiple of 32
  int begin_column;  // of them the columns [begin_column, end_column), multiples of 32
  int end_column;
  bool overwrite_sums;      // sums are written, not added to: the first keys of a KV split
  const float* correction;  // [rows] or null: what earlier sums are multiplied with first
};

// sums[row][column] = sums[row][column] * correction[row] + the sum over s in [begin, end) of
// p[s][row] * v[s][column], for kRows rows and kVecs vectors of columns.
//   kAhead  prefetch the columns' bytes of ahead.rows[0, steps * kPerOperand)
template <class Math, int kRows, int kVecs, bool kAhead, class DF>
HWY_INLINE void ValueKernel(DF df, const ValueProduct<Math>& product, int first_row, int column,
                            int begin, int end, const RowsToPrefetch& ahead) {
  using Operand = typename Math::Operand;
  const hn::Rebind<Operand, DF> dw;
  constexpr size_t kN = hn::MaxLanes(DF());
  constexpr int kPerOperand = Math::kPerOperand;
  // Cache lines of the columns in a row; lines of 16-bit elements that become f32 count twice.
  constexpr int kLines = (kVecs * kN + 16 * kPerOperand - 1) / (16 * kPerOperand);
  const int lanes = product.lanes;
  const int stride = product.stride;
  const int columns = product.columns;
  const Operand* HWY_RESTRICT p = product.p + begin * lanes + first_row;
  const Operand* HWY_RESTRICT v = product.v + begin * stride + column;
  float* HWY_RESTRICT sums = product.sums + first_row * columns + column;
  hn::Vec<DF> sum[kRows][kVecs];
  for (int row = 0; row < kRows; ++row) {
    for (int i = 0; i < kVecs; ++i) {
      sum[row][i] =
          product.overwrite_sums ? hn::Zero(df) : hn::Load(df, sums + row * columns + i * kN);
    }
  }
  if (product.correction != nullptr) {
    for (int row = 0; row < kRows; ++row) {
      const auto factor = hn::Set(df, product.correction[first_row + row]);
      for (int i = 0; i < kVecs; ++i) {
        sum[row][i] = hn::Mul(sum[row][i], factor);
      }
    }
  }
  // Four steps at a time: 92 % of the peak for the 64 keys of a block, 87 % one by one.
  HWY_UNROLL(4)
  for (int s = begin; s < end; ++s, p += lanes, v += stride) {
    hn::Vec<decltype(dw)> x[kVecs];
    for (int i = 0; i < kVecs; ++i) {
      x[i] = hn::Load(dw, v + i * kN);
    }
    if constexpr (kAhead) {
      for (int i = 0; i < kPerOperand; ++i) {
        for (int line = 0; line < kLines; ++line) {
          PrefetchAt(ahead.rows[s * kPerOperand + i], ahead.offset + line * ahead.step);
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      const Operand a = p[row];
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
template <class Math, int kVecs, bool kAhead, class DF>
HWY_INLINE void SmallMValueRows(DF df, const ValueProduct<Math>& product, int row, int rows,
                                int column, int begin, int end, const RowsToPrefetch& ahead) {
  if (rows >= 4) {
    ValueKernel<Math, 4, kVecs, kAhead>(df, product, row, column, begin, end, ahead);
  } else if (rows == 3) {
    ValueKernel<Math, 3, kVecs, kAhead>(df, product, row, column, begin, end, ahead);
  } else if (rows == 2) {
    ValueKernel<Math, 2, kVecs, kAhead>(df, product, row, column, begin, end, ahead);
  } else {
    ValueKernel<Math, 1, kVecs, kAhead>(df, product, row, column, begin, end, ahead);
  }
}

// f(first column, number of vectors as a constant) for the columns [column, end).
template <class DF, class F>
HWY_INLINE void ForColumns(DF, int column, int end, const F& f) {
  constexpr int kN = static_cast<int>(hn::MaxLanes(DF()));
  constexpr int kWide = kHas32Vectors ? 4 : 2;
  constexpr int kNarrow = 32 / kN < kWide ? 32 / kN : kWide;
  for (; column + kWide * kN <= end; column += kWide * kN) {
    f(column, std::integral_constant<int, kWide>());
  }
  for (; column < end; column += kNarrow * kN) {
    f(column, std::integral_constant<int, kNarrow>());
  }
}

// Up to 16 rows, one tile; the first four prefetch.
template <class Math>
HWY_INLINE void AddValuesAhead(const ValueProduct<Math>& product, int rows, RowsToPrefetch ahead) {
  const FloatTag<16> df;
  ForColumns(df, product.begin_column, product.end_column, [&](int column, auto vecs) HWY_ATTR {
    constexpr int kVecs = decltype(vecs)::value;
    ahead.offset = column / (16 * Math::kPerOperand) * ahead.step;
    SmallMValueRows<Math, kVecs, true>(df, product, 0, rows, column, 0, product.steps, ahead);
    for (int row = 4; row < rows; row += 4) {
      SmallMValueRows<Math, kVecs, false>(df, product, row, rows - row, column, 0, product.steps,
                                          {});
    }
  });
}

// For `rows` rows. Row i needs only the keys [first[i], last[i]), counted from `key0` and both
// ascending: the other probabilities are 0.
template <class Math>
HWY_INLINE void AddValues(const ValueProduct<Math>& product, int rows, int key0,
                          const int32_t* first, const int32_t* last) {
  const FloatTag<16> df;
  ForColumns(df, product.begin_column, product.end_column, [&](int column, auto vecs) HWY_ATTR {
    constexpr int kVecs = decltype(vecs)::value;
    for (int row = 0; row < rows; row += 4) {
      const int end_row = std::min(row + 4, rows) - 1;
      const int begin =
          std::clamp(first[row] - key0, 0, product.steps * Math::kPerOperand) / Math::kPerOperand;
      const int end = std::min(product.steps,
                               (last[end_row] - key0 + Math::kPerOperand - 1) / Math::kPerOperand);
      SmallMValueRows<Math, kVecs, false>(df, product, row, rows - row, column, begin, end, {});
    }
  });
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
