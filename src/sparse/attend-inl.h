// Attention of some heads of a query over its rows. Included once per SIMD target.
#if defined(RIFFLE_SPARSE_ATTEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_ATTEND_INL_H_
#undef RIFFLE_SPARSE_ATTEND_INL_H_
#else
#define RIFFLE_SPARSE_ATTEND_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/exp-inl.h"
#include "sparse/decode_rows-inl.h"
#include "sparse/scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Exp2;

constexpr float kLog2E = 0x1.715476p+0f;
constexpr double kLn2 = 0.6931471805599453;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kPanels = kAttendBlock / kPanel;
constexpr int kChunkVectors = kColumnChunk / kLanes;
static_assert(kAttendBlock % kPanel == 0);

// What stands for the rows that the last block lacks.
alignas(64) inline constexpr uint8_t kNoRow[kMaxRowDim * sizeof(float)] = {};

// scores[h][key] of one panel for kHeads heads.
template <class Words, int kHeads>
HWY_INLINE void HeadScores(const uint32_t* HWY_RESTRICT q, const uint32_t* HWY_RESTRICT panel,
                           int words, float* HWY_RESTRICT scores) {
  const LaneU32 du;
  const LaneF32 df;
  VecF32 sum[kHeads][2];
  for (int h = 0; h < kHeads; ++h) {
    sum[h][0] = sum[h][1] = hn::Zero(df);
  }
  for (int word = 0; word < words; ++word, q += kHeadGroup, panel += kPanel) {
    const auto k0 = hn::Load(du, panel);
    const auto k1 = hn::Load(du, panel + kLanes);
    for (int h = 0; h < kHeads; ++h) {
      sum[h][0] = Words::Step(q[h], k0, sum[h][0]);
      sum[h][1] = Words::Step(q[h], k1, sum[h][1]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    hn::Store(sum[h][0], df, scores + h * kAttendBlock);
    hn::Store(sum[h][1], df, scores + h * kAttendBlock + kLanes);
  }
}

// sums[h][column] = correction[h] * sums[h][column] + p[h] . v[column], kHeads heads, one vector or
// more of columns.
template <class Words, int kHeads>
HWY_INLINE void HeadValues(const uint32_t* HWY_RESTRICT p, const float* HWY_RESTRICT correction,
                           const uint32_t* HWY_RESTRICT values, int words, int64_t stride,
                           float* HWY_RESTRICT sums) {
  const LaneU32 du;
  const LaneF32 df;
  constexpr int kVecs = HWY_CAP_GE512 ? kChunkVectors : 2;
  for (int column = 0; column < kColumnChunk; column += kVecs * kLanes) {
    VecF32 sum[kHeads][kVecs];
    for (int h = 0; h < kHeads; ++h) {
      const auto factor = hn::Set(df, correction[h]);
      for (int i = 0; i < kVecs; ++i) {
        sum[h][i] = hn::Mul(factor, hn::Load(df, sums + h * stride + column + i * kLanes));
      }
    }
    const uint32_t* v = values + column;
    for (int word = 0; word < words; ++word, v += kColumnChunk) {
      VecU32 x[kVecs];
      for (int i = 0; i < kVecs; ++i) {
        x[i] = hn::Load(du, v + i * kLanes);
      }
      for (int h = 0; h < kHeads; ++h) {
        for (int i = 0; i < kVecs; ++i) {
          sum[h][i] = Words::Step(p[h * kAttendBlock + word], x[i], sum[h][i]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kVecs; ++i) {
        hn::Store(sum[h][i], df, sums + h * stride + column + i * kLanes);
      }
    }
  }
}

// f(heads as a constant, first head) for groups of kHeadGroup heads and what is left.
template <int kHeads = kHeadGroup, class F>
HWY_INLINE void ForHeads(int begin, int heads, const F& f) {
  if constexpr (kHeads == kHeadGroup) {
    for (; begin + kHeads <= heads; begin += kHeads) {
      f(std::integral_constant<int, kHeads>(), begin);
    }
  } else if (heads - begin == kHeads) {
    return f(std::integral_constant<int, kHeads>(), begin);
  }
  if constexpr (kHeads > 1) {
    if (begin < heads) {
      ForHeads<kHeads - 1>(begin, heads, f);
    }
  }
}

// One head's scores of a block become probabilities, as words in their place; its state goes on.
template <bool kPairs>
HWY_INLINE void Softmax(float* scores, float factor, int count, float* max, float* weight,
                        float* correction) {
  const LaneF32 df;
  const LaneI32 di;
  const auto minus_inf = hn::Set(df, kMinusInfinity);
  auto largest = minus_inf;
  for (int i = 0; i < kAttendBlock; i += kLanes) {
    const auto seen = hn::Lt(hn::Iota(di, i), hn::Set(di, count));
    const auto logit =
        hn::IfThenElse(hn::RebindMask(df, seen),
                       hn::Mul(hn::Load(df, scores + i), hn::Set(df, factor)), minus_inf);
    hn::Store(logit, df, scores + i);
    largest = hn::Max(largest, hn::IfThenElse(hn::IsNaN(logit), minus_inf, logit));
  }
  const float old = *max;
  const float now = std::max(old, hn::ReduceMax(df, largest));
  const float shift = now == kMinusInfinity ? 0.0f : now;
  *correction = hn::GetLane(Exp2(df, hn::Set(df, old - shift)));
  *max = now;
  auto sum = hn::Zero(df);
  for (int i = 0; i < kAttendBlock; i += kLanes) {
    const auto p = Exp2(df, hn::Sub(hn::Load(df, scores + i), hn::Set(df, shift)));
    sum = hn::Add(sum, p);
    if constexpr (kPairs) {  // in front of what is still to be read
      const hn::Rebind<uint16_t, LaneF32> du16;
      hn::StoreU(core::HWY_NAMESPACE::RoundToBF16(df, p), du16,
                 reinterpret_cast<uint16_t*>(scores) + i);
    } else {
      hn::Store(p, df, scores + i);
    }
  }
  *weight = *weight * *correction + hn::ReduceSum(df, sum);
}

template <class Words, bool kPairs>
class Attend {
 public:
  using Element = std::conditional_t<kPairs, uint16_t, float>;

  Attend(const AttendArgs& args, const AttendItem& item, const AttendScratch& layout,
         uint8_t* scratch)
      : args_(args),
        item_(item),
        layout_(layout),
        scratch_(scratch),
        heads_(item.head_end - item.head_begin) {}

  void Run() {
    PackHeads();
    const int64_t named = FindRows();
    std::fill_n(layout_.max.At(scratch_), heads_, kMinusInfinity);
    std::fill_n(layout_.weight.At(scratch_), heads_, 0.0f);
    std::fill_n(layout_.sums.At(scratch_), heads_ * layout_.padded_dim, 0.0f);
    for (int64_t begin = 0; begin < named; begin += kAttendBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kAttendBlock, named - begin));
      PackBlock(begin, count);
      Scores();
      for (int h = 0; h < heads_; ++h) {
        Softmax<kPairs>(layout_.scores.At(scratch_) + h * kAttendBlock, args_.scale * kLog2E, count,
                        layout_.max.At(scratch_) + h, layout_.weight.At(scratch_) + h,
                        layout_.correction.At(scratch_) + h);
      }
      Values(count);
    }
    for (int h = 0; h < heads_; ++h) {
      Finish(h);
    }
  }

 private:
  void PackHeads() {
    const int words = args_.row_words();
    for (int h = 0; h < heads_; ++h) {
      alignas(64) float x[kMaxRowDim];
      alignas(64) uint32_t row[kMaxRowDim];
      const uint8_t* from = args_.q + item_.token * args_.q_token_stride +
                            (item_.head_begin + h) * args_.q_head_stride;
      if constexpr (kPairs) {
        std::memcpy(row, from, static_cast<size_t>(args_.row_dim) * sizeof(uint16_t));
      } else {
        RowToF32(args_.q_dtype, from, args_.row_dim, x);
        std::memcpy(row, x, static_cast<size_t>(args_.row_dim) * sizeof(float));
      }
      uint32_t* to = layout_.q.At(scratch_) + h / kHeadGroup * words * kHeadGroup + h % kHeadGroup;
      for (int word = 0; word < words; ++word) {
        to[word * kHeadGroup] = row[word];
      }
    }
  }

  // Ascending; `other` has room for as many. Least significant digit first.
  static int32_t* Sort(int32_t* slots, int64_t count, int32_t* other) {
    if (std::is_sorted(slots, slots + count)) {
      return slots;
    }
    const auto most = static_cast<uint32_t>(*std::max_element(slots, slots + count));
    for (int shift = 0; shift < 32 && most >> shift != 0; shift += 11) {
      uint32_t start[2048] = {};
      for (int64_t i = 0; i < count; ++i) {
        ++start[static_cast<uint32_t>(slots[i]) >> shift & 2047];
      }
      uint32_t sum = 0;
      for (uint32_t& at : start) {
        const uint32_t here = at;
        at = sum;
        sum += here;
      }
      for (int64_t i = 0; i < count; ++i) {
        other[start[static_cast<uint32_t>(slots[i]) >> shift & 2047]++] = slots[i];
      }
      std::swap(slots, other);
    }
    return slots;
  }

  static const uint8_t* RowAt(const SparseRows& rows, int32_t slot) {
    const auto element = static_cast<int64_t>(SizeOf(rows.dtype));
    const int64_t stride =
        rows.format == SparseRowFormat::kMla584 ? 576 : rows.row_stride * element;
    const int64_t page = rows.page_size == 0 ? 0 : slot / rows.page_size;
    const int64_t row = rows.page_size == 0 ? slot : slot % rows.page_size;
    return static_cast<const uint8_t*>(rows.data) + page * rows.page_stride * element +
           row * stride;
  }

  // Where the rows are that the query names, in canonical order. Returns how many.
  int64_t FindRows() {
    int64_t named = 0;
    const uint8_t** to = layout_.rows.At(scratch_);
    uint8_t* formats = layout_.formats.At(scratch_);
    for (size_t s = 0; s < args_.scopes.size(); ++s) {
      const SparseScope& scope = args_.scopes[s];
      const int32_t* from = scope.slots + item_.token * scope.slots_stride;
      const int64_t length = scope.lengths == nullptr
                                 ? scope.cols
                                 : std::clamp<int64_t>(scope.lengths[item_.token], 0, scope.cols);
      int32_t* slots = layout_.slots.At(scratch_);
      int64_t count = 0;
      for (int64_t i = 0; i < length; ++i) {
        const int32_t slot = from[i];
        slots[count] = slot;
        count += slot >= 0 && slot < scope.rows.slots ? 1 : 0;
      }
      slots = Sort(slots, count, slots + scope.cols + 1);
      for (int64_t i = 0; i < count; ++i, ++named) {
        to[named] = RowAt(scope.rows, slots[i]);
        formats[named] = static_cast<uint8_t>(s);
      }
    }
    named_ = named;
    return named;
  }

  void PackBlock(int64_t begin, int count) {
    const uint8_t* rows[kAttendBlock];
    const int words = args_.row_words();
    uint32_t* decoded = layout_.decoded.At(scratch_);
    for (int i = 0; i < kAttendBlock; ++i) {
      if (i >= count) {
        rows[i] = kNoRow;
        continue;
      }
      Prefetch(begin + i + kPrefetchRows);
      const SparseRows& of = args_.scopes[layout_.formats.At(scratch_)[begin + i]].rows;
      const uint8_t* at = layout_.rows.At(scratch_)[begin + i];
      if (of.format == SparseRowFormat::kPlain && (kPairs || of.dtype == DType::kF32)) {
        rows[i] = at;
        continue;
      }
      DecodeRow(of, at, reinterpret_cast<Element*>(decoded + i * words));
      rows[i] = reinterpret_cast<const uint8_t*>(decoded + i * words);
    }
    const int panels = (count + kPanel - 1) / kPanel;
    PackTile(rows, panels, words, 0, layout_.keys.At(scratch_));
    std::memset(layout_.keys.At(scratch_) + panels * words * kPanel, 0,
                static_cast<size_t>((kPanels - panels) * words * kPanel) * sizeof(uint32_t));
    PackValues(rows, count);
  }

  // A word of values is one element of a row, or of two neighbours the first in the low half.
  void PackValues(const uint8_t* const* rows, int count) {
    uint32_t* to = layout_.values.At(scratch_);
    const int steps = Steps(count);
    for (int column = 0; column < args_.value_dim; column += kColumnChunk) {
      const int columns = std::min(kColumnChunk, args_.value_dim - column);
      for (int step = 0; step < steps; ++step, to += kColumnChunk) {
        if constexpr (kPairs) {
          const LaneU32 du;
          const hn::Rebind<uint16_t, LaneU32> d16;
          for (int i = 0; i < columns; i += kLanes) {
            const auto low = hn::PromoteTo(du, LoadAny(d16, rows[2 * step] + 2 * (column + i)));
            const auto high =
                hn::PromoteTo(du, LoadAny(d16, rows[2 * step + 1] + 2 * (column + i)));
            hn::Store(hn::Or(low, hn::ShiftLeft<16>(high)), du, to + i);
          }
        } else {
          std::memcpy(to, rows[step] + 4 * column, static_cast<size_t>(columns) * sizeof(float));
        }
        std::fill(to + columns, to + kColumnChunk, 0u);
      }
    }
  }

  static int Steps(int count) { return kPairs ? (count + 1) / 2 : count; }

  static constexpr int kPrefetchRows = 24;
  void Prefetch(int64_t i) const {
    if (i >= named_) {
      return;
    }
    const uint8_t* at = layout_.rows.At(scratch_)[i];
    const SparseRows& of = args_.scopes[layout_.formats.At(scratch_)[i]].rows;
    const int64_t bytes = of.format == SparseRowFormat::kPlain
                              ? of.row_dim * static_cast<int64_t>(SizeOf(of.dtype))
                          : of.format == SparseRowFormat::kMla656 ? 656
                                                                  : 576;
    for (int64_t at_byte = 0; at_byte < bytes; at_byte += 64) {
      __builtin_prefetch(at + at_byte, 0, 2);
    }
  }

  void Scores() {
    const int words = args_.row_words();
    const uint32_t* q = layout_.q.At(scratch_);
    float* scores = layout_.scores.At(scratch_);
    for (int p = 0; p < kPanels; ++p) {
      const uint32_t* panel = layout_.keys.At(scratch_) + p * words * kPanel;
      ForHeads(0, heads_, [&](auto heads, int h) HWY_ATTR {
        HeadScores<Words, decltype(heads)::value>(q + h * words, panel, words,
                                                  scores + h * kAttendBlock + p * kPanel);
      });
    }
  }

  void Values(int count) {
    const int steps = Steps(count);
    const auto* p = reinterpret_cast<const uint32_t*>(layout_.scores.At(scratch_));
    const uint32_t* values = layout_.values.At(scratch_);
    float* sums = layout_.sums.At(scratch_);
    const float* correction = layout_.correction.At(scratch_);
    for (int64_t column = 0; column < layout_.padded_dim;
         column += kColumnChunk, values += steps * kColumnChunk) {
      ForHeads(0, heads_, [&](auto heads, int h) HWY_ATTR {
        HeadValues<Words, decltype(heads)::value>(p + h * kAttendBlock, correction + h, values,
                                                  steps, layout_.padded_dim,
                                                  sums + h * layout_.padded_dim + column);
      });
    }
  }

  void Finish(int h) {
    const LaneF32 df;
    const int head = item_.head_begin + h;
    const float max = layout_.max.At(scratch_)[h];
    float weight = layout_.weight.At(scratch_)[h];
    const float* sums = layout_.sums.At(scratch_) + h * layout_.padded_dim;
    double lse = weight == 0 ? -std::numeric_limits<double>::infinity()
                             : (double{max} + std::log2(double{weight})) * kLn2;
    float factor = weight == 0 ? 0 : 1 / weight;
    if (args_.sinks != nullptr) {
      const double sink = args_.sinks[head];
      const double larger = std::max(lse, sink);
      const double both = std::isinf(larger)
                              ? larger
                              : larger + std::log(std::exp(lse - larger) + std::exp(sink - larger));
      factor = std::isinf(both) && both > 0 ? 0
               : std::isinf(both)           ? factor
                                  : static_cast<float>(double{factor} * std::exp(lse - both));
      lse = args_.lse_with_sinks ? both : lse;
    }
    alignas(64) float out[kMaxRowDim];
    for (int i = 0; i < args_.value_dim; i += kLanes) {
      const auto sum = hn::Load(df, sums + i);
      hn::Store(
          factor == 0 && !std::isnan(weight) ? hn::Zero(df) : hn::Mul(sum, hn::Set(df, factor)), df,
          out + i);
    }
    Store(out, args_.out + item_.token * args_.out_token_stride + head * args_.out_head_stride);
    if (args_.lse != nullptr) {
      args_.lse[item_.token * args_.lse_token_stride + head] = static_cast<float>(lse);
    }
  }

  void Store(const float* x, uint8_t* to) const {
    const LaneF32 df;
    const hn::Rebind<uint16_t, LaneF32> du16;
    alignas(64) uint16_t half[kMaxRowDim];
    if (args_.q_dtype == DType::kF32) {
      std::memcpy(to, x, static_cast<size_t>(args_.value_dim) * sizeof(float));
      return;
    }
    for (int i = 0; i < args_.value_dim; i += kLanes) {
      const auto value = hn::Load(df, x + i);
      hn::Store(args_.q_dtype == DType::kF16 ? core::HWY_NAMESPACE::RoundToF16(df, value)
                                             : core::HWY_NAMESPACE::RoundToBF16(df, value),
                du16, half + i);
    }
    std::memcpy(to, half, static_cast<size_t>(args_.value_dim) * sizeof(uint16_t));
  }

  const AttendArgs& args_;
  const AttendItem& item_;
  const AttendScratch& layout_;
  uint8_t* const scratch_;
  const int heads_;
  int64_t named_ = 0;
};

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
