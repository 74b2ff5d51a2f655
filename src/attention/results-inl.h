// From states to results. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_RESULTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_RESULTS_INL_H_
#undef RIFFLE_ATTENTION_RESULTS_INL_H_
#else
#define RIFFLE_ATTENTION_RESULTS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "attention/attention_kernels.h"
#include "attention/decode_f32-inl.h"
#include "attention/softmax-inl.h"
#include "attention/work_item_state-inl.h"
#include "core/round-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::RoundToBF16;
using core::HWY_NAMESPACE::RoundToF16;

template <class D>
HWY_INLINE void StoreAny(D, hn::Vec<D> v, uint8_t* p) {
  const hn::Repartition<uint8_t, D> d8;
  hn::StoreU(hn::BitCast(d8, v), d8, p);
}

// A vector of results of `dtype` = x * factor, to `out`. Stores zeros as +0 and NaNs as one NaN:
// which zero or NaN arose depends on what was skipped.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE void StoreScaled(DF df, DType dtype, V x, V factor, uint8_t* out) {
  const hn::Rebind<uint16_t, DF> du16;
  x = hn::Add(hn::Mul(x, factor), hn::Zero(df));
  x = hn::IfThenElse(hn::IsNaN(x), hn::NaN(df), x);
  if (dtype == DType::kF32) {
    StoreAny(df, x, out);
  } else if (dtype == DType::kBF16) {
    StoreAny(du16, RoundToBF16(df, x), out);
  } else {
    StoreAny(du16, RoundToF16(df, x), out);
  }
}

// out[0, n) of `dtype` = values * factor; n is a multiple of the vector.
template <class DF>
HWY_INLINE void WriteScaledAs(DF df, DType dtype, const float* values, float factor, int n,
                              uint8_t* out) {
  const auto f = hn::Set(df, factor);
  const auto bytes = static_cast<int>(SizeOf(dtype));
  for (int i = 0; i < n; i += static_cast<int>(hn::MaxLanes(DF()))) {
    StoreScaled(df, dtype, hn::LoadU(df, values + i), f, out + bytes * i);
  }
}

// The same for n a multiple of 8.
HWY_INLINE void WriteScaled(DType dtype, const float* values, float factor, int n, uint8_t* out) {
  const int whole = n / 16 * 16;
  WriteScaledAs(FloatTag<16>(), dtype, values, factor, whole, out);
  if (whole < n) {
    WriteScaledAs(Tag8(), dtype, values + whole, factor, 8,
                  out + static_cast<size_t>(whole) * SizeOf(dtype));
  }
}

// Where the result of a row goes and the factor for its sums.
struct RowResult {
  uint8_t* out;  // null: the row saw no key, and its zeros have been written
  float factor;
};

// Writes what a row's state alone decides: lse, and zeros if it saw nothing.
HWY_INLINE RowResult BeginRow(const AttentionArgs& args, int64_t token, int64_t head, float max,
                              float weight) {
  const Finished finished =
      Finish(max, weight, args.sinks != nullptr ? args.sinks + head : nullptr, args.lse != nullptr);
  if (args.lse != nullptr) {
    args.lse[token * args.lse_token_stride + head] =
        args.lse_without_sinks ? Finish(max, weight, nullptr, true).lse : finished.lse;
  }
  uint8_t* out = args.out + token * args.out_token_stride + head * args.out_head_stride;
  if (weight == 0.0f) {
    std::memset(out, 0, static_cast<size_t>(args.values.dim) * SizeOf(args.q_dtype));
    return {nullptr, 0.0f};
  }
  return {out, finished.factor};
}

// The result of query head `head` of `token`.
HWY_INLINE void WriteRow(const AttentionArgs& args, int64_t token, int64_t head, float max,
                         float weight, const float* sums) {
  const RowResult row = BeginRow(args, token, head, max, weight);
  if (row.out != nullptr) {
    WriteScaled(args.q_dtype, sums, row.factor, args.values.dim, row.out);
  }
}

inline void MergeDividedItem(const AttentionArgs& args, const DividedItem& divided, int head,
                             float* partial_states) {
  const WorkItem& item = divided.whole;
  const int columns = PaddedDim(args.values.dim);
  const int heads = item.head_end - item.head_begin;
  const int group = args.shape.group;
  const int rows = (item.query_end - item.query_begin) * group;
  float* first = partial_states + PartialStateFloats(item.state_row, columns);
  const int64_t state_floats = PartialStateFloats(PartialStateRows(heads, rows), columns);
  const PartialStateView total(first, heads, rows, columns);
  for (int row = head * rows; row < (head + 1) * rows; ++row) {
    float* sums = total.sums + int64_t{row} * columns;
    for (int64_t i = 1; i < divided.partial_states; ++i) {
      const PartialStateView next(first + i * state_floats, heads, rows, columns);
      MergeState(next.max[row], next.weight[row], next.sums + int64_t{row} * columns, columns,
                 total.max + row, total.weight + row, sums);
    }
    const int in_head = row - head * rows;
    WriteRow(args, args.first_token(item.seq) + item.query_begin + in_head / group,
             int64_t{item.head_begin + head} * group + in_head % group, total.max[row],
             total.weight[row], sums);
  }
}

// Row [dim] of `dtype`: sum of weights[i] * rows[i] in order; rows of weight 0 are not read.
inline void SumWeighted(DType dtype, const uint8_t* const* rows, const float* weights, int64_t n,
                        int dim, uint8_t* out) {
  const Tag8 df;
  alignas(64) float sum[kMaxHeadDim] = {};
  alignas(64) float row[kMaxHeadDim];
  for (int64_t i = 0; i < n; ++i) {
    if (weights[i] == 0.0f) {
      continue;
    }
    ToF32(dtype, rows[i], dim, row);
    const auto w = hn::Set(df, weights[i]);
    for (int c = 0; c < dim; c += static_cast<int>(hn::MaxLanes(df))) {
      hn::Store(hn::MulAdd(hn::Load(df, row + c), w, hn::Load(df, sum + c)), df, sum + c);
    }
  }
  WriteScaled(dtype, sum, 1.0f, dim, out);
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
