// Scores of a tile of keys for a query. Included once per SIMD target.
#if defined(RIFFLE_SPARSE_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_SCORES_INL_H_
#undef RIFFLE_SPARSE_SCORES_INL_H_
#else
#define RIFFLE_SPARSE_SCORES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/bf16_dot.h"
#include "core/dot_operands-inl.h"
#include "sparse/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
#if RIFFLE_INT8_MATRICES
using core::HWY_NAMESPACE::AddInt8Matrices;
using core::HWY_NAMESPACE::SplitRows;
#endif

// An operand is one f32; a step is one fused multiply-add.
struct F32Scores {
  using Sum = VecF32;
  static HWY_INLINE Sum Start(int32_t) { return hn::Zero(LaneF32()); }
  static HWY_INLINE Sum Step(uint32_t q, VecU32 key, Sum sum) {
    const LaneF32 df;
    return hn::MulAdd(hn::BitCast(df, hn::Set(LaneU32(), q)), hn::BitCast(df, key), sum);
  }
  static HWY_INLINE VecF32 Score(Sum sum, bool relu) {
    return relu ? hn::IfThenZeroElse(hn::Lt(sum, hn::Zero(LaneF32())), sum) : sum;  // NaN stays
  }
};

#if RIFFLE_BF16_DOT
// An operand is two bf16, the first in the low half.
struct BF16Scores : F32Scores {
  static HWY_INLINE Sum Step(uint32_t q, VecU32 key, Sum sum) {
    return core::HWY_NAMESPACE::BF16PairDot::Step(LaneF32(), q, key, sum);
  }
};
#endif

// An operand is four int8, those of keys as code + Int8Dot::kBias. |sum| <= 256 * 128 * 128 = 2^22,
// so it is exact in f32 too.
struct Int8Scores {
  using Sum = VecI32;
  static HWY_INLINE Sum Start(int32_t start) { return hn::Set(LaneI32(), start); }
  static HWY_INLINE Sum Step(uint32_t q, VecU32 key, Sum sum) {
    const hn::Repartition<uint8_t, LaneI32> du8;
    const hn::Repartition<int8_t, LaneI32> di8;
    return Int8Dot::Step(LaneI32(), hn::BitCast(du8, key), hn::BitCast(di8, hn::Set(LaneU32(), q)),
                         sum);
  }
  static HWY_INLINE VecF32 Score(Sum sum, bool relu) {
    return hn::ConvertTo(LaneF32(), relu ? hn::Max(sum, hn::Zero(LaneI32())) : sum);
  }
};

// q . k of kHeads heads and a panel's keys: sum[head][half of the panel].
template <class Math, int kHeads>
HWY_INLINE void HeadProducts(const uint32_t* HWY_RESTRICT q, const int32_t* HWY_RESTRICT starts,
                             const uint32_t* HWY_RESTRICT panel, int operands,
                             typename Math::Sum (&sum)[kHeads][2]) {
  const LaneU32 du;
  for (int h = 0; h < kHeads; ++h) {
    sum[h][0] = sum[h][1] = Math::Start(starts[h]);
  }
  for (int operand = 0; operand < operands; ++operand, q += kHeadGroup, panel += kPanel) {
    const auto k0 = hn::Load(du, panel);
    const auto k1 = hn::Load(du, panel + kLanes);
    for (int h = 0; h < kHeads; ++h) {
      sum[h][0] = Math::Step(q[h], k0, sum[h][0]);
      sum[h][1] = Math::Step(q[h], k1, sum[h][1]);
    }
  }
}

#if RIFFLE_INT8_MATRICES
// HeadProducts by matrices of two heads and two keys. Of an odd number of heads the last one is
// paired with whatever follows it, and those sums are dropped.
template <int kHeads>
HWY_INLINE void Int8HeadProducts(const uint32_t* HWY_RESTRICT q, const uint32_t* HWY_RESTRICT panel,
                                 int operands, VecI32 (&sum)[kHeads][2]) {
  constexpr int kPairs = (kHeads + 1) / 2;
  constexpr int kKeyPairs = kPanel / 2;
  const LaneU32 du;
  VecI32 sums[kPairs][kKeyPairs];
  for (auto& of_heads : sums) {
    for (auto& of_keys : of_heads) {
      of_keys = hn::Zero(LaneI32());
    }
  }
  for (int operand = 0; operand < operands;
       operand += 2, q += 2 * kHeadGroup, panel += 2 * kPanel) {
    VecU32 keys[kKeyPairs];
    for (int k = 0; k < kKeyPairs; ++k) {
      keys[k] = hn::Load(du, panel + k * kLanes);
    }
    for (int p = 0; p < kPairs; ++p) {
      const auto heads = hn::Load(du, q + p * kLanes);
      for (int k = 0; k < kKeyPairs; ++k) {
        sums[p][k] = AddInt8Matrices(sums[p][k], heads, keys[k]);
      }
    }
  }
  for (int p = 0; p < kPairs; ++p) {
    for (int half = 0; half < 2; ++half) {
      VecI32 even, odd;
      SplitRows(sums[p][2 * half], sums[p][2 * half + 1], even, odd);
      sum[2 * p][half] = even;
      if (2 * p + 1 < kHeads) {
        sum[2 * p + 1][half] = odd;
      }
    }
  }
}
#endif

// Adds the scores of kHeads heads, in ascending order, to the totals of a panel's keys.
template <class Math, int kHeads>
HWY_INLINE void AddHeads(const uint32_t* HWY_RESTRICT q, const float* HWY_RESTRICT weights,
                         const int32_t* HWY_RESTRICT starts, const uint32_t* HWY_RESTRICT panel,
                         int operands, bool relu, VecF32 (&total)[2]) {
  typename Math::Sum sum[kHeads][2];
#if RIFFLE_INT8_MATRICES
  if constexpr (std::is_same_v<Math, Int8Scores>) {
    Int8HeadProducts<kHeads>(q, panel, operands, sum);
  } else
#endif
  {
    HeadProducts<Math, kHeads>(q, starts, panel, operands, sum);
  }
  const LaneF32 df;
  for (int h = 0; h < kHeads; ++h) {
    const auto weight = hn::Set(df, weights[h]);
    total[0] = hn::Add(total[0], hn::Mul(weight, Math::Score(sum[h][0], relu)));
    total[1] = hn::Add(total[1], hn::Mul(weight, Math::Score(sum[h][1], relu)));
  }
}

// AddHeads for `heads` of a group, at most kHeads.
template <class Math, int kHeads>
HWY_INLINE void AddSomeHeads(int heads, const uint32_t* q, const float* weights,
                             const int32_t* starts, const uint32_t* panel, int operands, bool relu,
                             VecF32 (&total)[2]) {
  if constexpr (kHeads > 1) {
    if (heads < kHeads) {
      return AddSomeHeads<Math, kHeads - 1>(heads, q, weights, starts, panel, operands, relu,
                                            total);
    }
  }
  AddHeads<Math, kHeads>(q, weights, starts, panel, operands, relu, total);
}

// Scores of an item's queries, a tile of keys at a time.
template <class Math>
class Scorer {
 public:
  Scorer(const IndexerArgs& args, const IndexerItem& item, const ScoreScratch& layout,
         uint8_t* scratch)
      : args_(args), item_(item), layout_(layout), scratch_(scratch) {
    for (int32_t token = item.queries.begin; token < item.queries.end; ++token) {
      PackQuery(args, token, static_cast<int>(token - item.queries.begin), layout, scratch);
    }
    FindRows(item.begin, next_rows_);
  }

  // Packs the item's keys [begin, begin + kTileKeys), or as many as it has. Pre: tiles in order.
  void Pack(int32_t begin) {
    std::copy(std::begin(next_rows_), std::end(next_rows_), rows_);
    float* scales = layout_.scales.At(scratch_);
    std::copy(std::begin(next_scales_), std::end(next_scales_), scales);
    count_ = std::min(kTileKeys, item_.end - begin);
    // Prefetch the next tile while this one is scored.
    if (begin + kTileKeys < item_.end) {
      FindRows(begin + kTileKeys, next_rows_);
      PrefetchRows();
    }
    const int operands = args_.operands();
    panels_ = (count_ + kPanel - 1) / kPanel;
#if RIFFLE_SPARSE_E4M3_TABLES
    if (args_.product == Product::kBF16 && args_.key_dtype == DType::kE4M3 && !args_.mxfp4) {
      PackE4M3Tile(rows_, panels_, args_.head_dim, layout_.tile.At(scratch_));
      return;
    }
#endif
    uint32_t* converted = layout_.rows.At(scratch_);
    const uint8_t* rows[kTileKeys];
    for (int i = 0; i < panels_ * kPanel; ++i) {
      rows[i] = KeyOperands(args_, rows_[i], scales + i, converted + i * operands);
    }
    if (args_.mxfp4) {  // its scales are in the operands
      std::fill_n(scales, kTileKeys, 1.0f);
    }
#if RIFFLE_INT8_MATRICES
    if (args_.product == Product::kInt8) {
      PackInt8Matrices(rows, panels_, operands, layout_.tile.At(scratch_));
      return;
    }
#endif
    PackTile(rows, panels_, operands, args_.product == Product::kInt8 ? Int8Dot::kSignFlip : 0,
             layout_.tile.At(scratch_));
  }

  // Scores of the packed keys: kTileKeys of them, meaningless past the tile's last key.
  const float* Score(int query) {
    const LaneF32 df;
    const int operands = args_.operands();
    const float* weights = layout_.weights.At(scratch_) + query * kMaxIndexHeads;
    const int32_t* starts = layout_.starts.At(scratch_) + query * kMaxIndexHeads;
    const float* scales = layout_.scales.At(scratch_);
    float* logits = layout_.logits.At(scratch_);
    const uint32_t* panel = layout_.tile.At(scratch_);
    for (int p = 0; p < panels_; ++p, panel += operands * kPanel) {
      const uint32_t* q = layout_.q.At(scratch_) + query * layout_.query_operands;
      VecF32 total[2] = {hn::Zero(df), hn::Zero(df)};
      int h = 0;
      for (; h + kHeadGroup <= args_.heads; h += kHeadGroup, q += operands * kHeadGroup) {
        AddHeads<Math, kHeadGroup>(q, weights + h, starts + h, panel, operands, args_.relu, total);
      }
      if (h < args_.heads) {
        AddSomeHeads<Math, kHeadGroup - 1>(args_.heads - h, q, weights + h, starts + h, panel,
                                           operands, args_.relu, total);
      }
      for (int i = 0; i < 2; ++i) {
        const int at = p * kPanel + i * kLanes;
        const auto score = hn::Mul(total[i], hn::Load(df, scales + at));
        const auto nan = hn::BitCast(df, hn::Set(LaneU32(), 0x7fc00000u));
        hn::Store(hn::IfThenElse(hn::IsNaN(score), nan, score), df, logits + at);
      }
    }
    return logits;
  }

  int count() const { return count_; }

 private:
  // Finds the rows and scales of keys from `begin` on; past the item's end repeats the last one.
  void FindRows(int32_t begin, const uint8_t** rows) {
    const int32_t seq = args_.ranges[item_.queries.begin].seq;
    const int32_t* pages = args_.page_numbers + args_.page_begin[seq];
    const int count = std::min(kTileKeys, item_.end - begin);
    int64_t position = Position(begin);
    int64_t page = position / args_.page_size;
    int64_t offset = position % args_.page_size;
    for (int i = 0; i < count; ++i) {
      rows[i] = args_.keys + pages[page] * args_.page_stride + offset * args_.token_stride;
      next_scales_[i] = ScaleAt(pages[page], offset);
      if (i + 1 == count) {
        break;
      }
      const int64_t next = Position(begin + i + 1);
      offset += next - position;  // most keys follow each other
      position = next;
      if (offset >= args_.page_size) {
        page += offset / args_.page_size;
        offset %= args_.page_size;
      }
    }
    for (int i = count; i < kTileKeys; ++i) {
      rows[i] = rows[count - 1];
      next_scales_[i] = next_scales_[count - 1];
    }
  }

  // The four bytes of a key's scale; for MXFP4 these are four scales, not a float.
  HWY_INLINE float ScaleAt(int64_t page, int64_t offset) const {
    float scale = 1.0f;
    if (args_.scales != nullptr) {
      std::memcpy(&scale,
                  args_.scales + page * args_.scale_page_stride + offset * args_.scale_token_stride,
                  sizeof(scale));
    }
    return scale;
  }

  HWY_INLINE int64_t Position(int32_t key) const {
    if (args_.candidates == nullptr) {
      return key;
    }
    const int64_t block = args_.candidate_block;
    const int32_t* list = args_.candidates + int64_t{item_.queries.begin} * args_.candidate_stride;
    return list[key / block] * block + key % block;
  }

  void PrefetchRows() const {
    for (const uint8_t* row : next_rows_) {
      for (int64_t i = 0; i < args_.key_bytes; i += 64) {
        __builtin_prefetch(row + i, 0, 2);
      }
    }
  }

  const IndexerArgs& args_;
  const IndexerItem& item_;
  const ScoreScratch& layout_;
  uint8_t* const scratch_;
  int count_ = 0;
  int panels_ = 0;
  const uint8_t* rows_[kTileKeys];
  const uint8_t* next_rows_[kTileKeys];
  float next_scales_[kTileKeys];
};

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
