// A work item of attention: some queries of a sequence, some KV heads, some spans of keys. Included
// once per SIMD target.
#if defined(RIFFLE_ATTENTION_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_ATTENTION_INL_H_
#undef RIFFLE_ATTENTION_ATTENTION_INL_H_
#else
#define RIFFLE_ATTENTION_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "attention/attention_kernels.h"
#include "attention/kv_block-inl.h"
#include "attention/query_tiles-inl.h"
#include "attention/results-inl.h"
#include "attention/small_m-inl.h"
#include "attention/softmax-inl.h"
#include "attention/values-inl.h"
#include "attention/work_item_scratch-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Math>
class WorkItemRunner {
  using Word = typename Math::Word;

 public:
  WorkItemRunner(const AttentionArgs& args, const Plan& plan, uint8_t* scratch)
      : args_(args),
        dim_(args.shape.head_dim),
        words_(dim_ / Math::kPerOperand),
        ahead_step_(16 * Math::kPerOperand * static_cast<int>(args.kv_row_bytes()) / dim_),
        row_bytes_(args.kv_row_bytes()),
        scales_apart_(Math::kDirect && args.kv_int8),
        wide_logits_(NeedsWideLogits(args.scale, args.soft_cap)),
        // After a soft cap scores are logits in work items of log2 already.
        factor_(args.soft_cap > 0 || args.scale == 0 || wide_logits_
                    ? 1.0f
                    : std::abs(args.scale) * kLog2E) {
    shape_.columns = PaddedDim(dim_);
    value_stride_ = ValueStride(shape_.columns);
    at_.Place(dim_, plan, scratch);
    // Columns past head_dim stay 0.
    std::fill_n(at_.values, kBlock / Math::kPerOperand * value_stride_, Word{0});
  }

  void Run(const WorkItem& item, float* partial_states, TileCursor& ahead) {
    Enter(item);
    float* slot = partial_states + std::max<int64_t>(item.slot, 0);
    // Folding one span into nothing would change no result.
    const bool one_span = item.slot < 0 && item.span_end - item.span_begin == 1;
    if (!one_span) {
      at_.total.Clear(shape_);
      std::fill_n(at_.total.sums, int64_t{shape_.heads} * shape_.rows * shape_.columns, 0.0f);
    }
    for (int span = item.span_begin; span < item.span_end; ++span) {
      at_.span.Clear(shape_);
      span0_ = span * kKvSplit;
      const int begin = std::max(seen_.begin, span * kKvSplit) / kBlock * kBlock;
      const int end = std::min(seen_.end, (span + 1) * kKvSplit);
      for (int key0 = begin; key0 < end; key0 += kBlock) {
        for (int head = 0; head < shape_.heads; ++head) {
          RunBlock(head, key0, ahead);
          ahead.Next();
        }
      }
      if (one_span) {
        WriteResults(at_.span);
        return;
      }
      if (item.merges) {
        MergePartialState(shape_, at_.span, at_.total);
      } else {
        StoreState(shape_, at_.span, slot);
        slot += PartialStateFloats(shape_.heads, shape_.rows, dim_);
      }
    }
    if (item.slot < 0) {
      WriteResults(at_.total);
    } else if (item.merges) {
      StoreState(shape_, at_.total, slot);
    }
  }

 private:
  void Enter(const WorkItem& item) {
    unit_ = &item;
    seen_ = WorkItemKeys(args_, item);
    shape_.heads = item.head_end - item.head_begin;
    shape_.rows = (item.query_end - item.query_begin) * args_.shape.group;
    shape_.lanes = WorkItemLanes(shape_.rows);
    single_tile_ = shape_.lanes <= 16;
    queries_.Enter(item, shape_, seen_);
  }

  void RunBlock(int head, int key0, const TileCursor& ahead) {
    if (scales_apart_) {
      for (int group = 0; group < kGroups; ++group) {
        FindScales(args_.keys, head, key0, group, key_scales_);
        FindScales(args_.values, head, key0, group, value_scales_);
      }
    }
    if (single_tile_) {
      ahead.Find(&ahead_);
      queries_.ForEachTile([&](const Tile& tile) { RunTile(head, key0, tile); });
      return;
    }
    for (int group = 0; group < kGroups; ++group) {
      ahead.Prefetch(group);
      ahead.Prefetch(kGroups + group);
      PackGroupKeys(head, key0, group, group);
    }
    for (int group = 0; group < kGroups; ++group) {
      PackGroupValues(head, key0, group, seen_);
    }
    queries_.ForEachTile([&](const Tile& tile) { RunTile(head, key0, tile); });
  }

  KvRows Rows(const KvBytes& kv, int head, int key0, int group, const KeyRange& keys) const {
    return FindRows(args_, kv, unit_->seq, unit_->head_begin + head, key0 + group * kGroupKeys,
                    keys);
  }

  // Those of a group of the block; 0 for rows that no query sees.
  void FindScales(const KvPages& kv, int head, int key0, int group, float* to) const {
    const KvRows rows = Rows(kv.scales, head, key0, group, seen_);
    for (int i = 0; i < kGroupKeys; ++i) {
      to[group * kGroupKeys + i] = ScaleAt(args_.kv_dtype, rows.row[i]) / kv.scale_divisor;
    }
  }

  // Group `group` of the block to place `place` of keys.
  void PackGroupKeys(int head, int key0, int group, int place) {
    Word* to = at_.keys + place * kGroupKeys * Math::kKeyStride;
    if (!PackInt8(args_.keys, head, key0, group, seen_, Math::kKeyStride, to)) {
      PackKeys(Math(), args_.kv_dtype, Rows(args_.keys, head, key0, group, seen_), dim_, to);
    }
  }

  void PackGroupValues(int head, int key0, int group, const KeyRange& keys) {
    Word* to = GroupValues(group);
    if constexpr (Math::kPerOperand == 1) {
      if (!PackInt8(args_.values, head, key0, group, keys, value_stride_, to)) {
        PackValues(Math(), args_.kv_dtype, Rows(args_.values, head, key0, group, keys), dim_,
                   value_stride_, to);
      }
    } else {
      alignas(64) Word room[kGroupKeys * (512 / Math::kPerOperand)];
      const KvRows rows =
          Readable(args_.values, head, key0, group, keys, 512 / Math::kPerOperand, room);
      PackValues(Math(), args_.kv_dtype, rows, dim_, value_stride_, to);
    }
  }

  // A group of rows of int8 to to[16][stride]; false if they are not. bf16 holds the integers
  // themselves, whose scales multiply scores and weights.
  bool PackInt8(const KvPages& kv, int head, int key0, int group, const KeyRange& keys, int stride,
                Word* to) const {
    if (args_.kv_int8) {
      const KvRows rows = Rows(kv, head, key0, group, keys);
      if constexpr (Math::kDirect) {
        PackIntegers(rows, dim_, stride, to);
      } else {
        PackScaledRows(Math(), args_.kv_dtype, rows, Rows(kv.scales, head, key0, group, keys),
                       kv.scale_divisor, dim_, stride, to);
      }
    }
    return args_.kv_int8;
  }

  // A group of rows in the dtype of `Math`: read in place, or int8 packed into room[16][stride].
  KvRows Readable(const KvPages& kv, int head, int key0, int group, const KeyRange& keys,
                  int stride, Word* room) const {
    if (!PackInt8(kv, head, key0, group, keys, stride, room)) {
      return Rows(kv, head, key0, group, keys);
    }
    KvRows rows;
    for (int i = 0; i < kGroupKeys; ++i) {
      rows.row[i] = reinterpret_cast<const uint8_t*>(room + i * stride);
    }
    return rows;
  }

  // One tile: each group in the place of the one before it.
  Word* GroupValues(int group) const {
    return at_.values + (single_tile_ ? 0 : group) * kGroupSteps * value_stride_;
  }

  void RunTile(int head, int key0, const Tile& tile) {
    // The groups of keys that any row sees, relative to the block.
    const int begin =
        std::max({tile.any.begin, seen_.begin, key0}) / kGroupKeys * kGroupKeys - key0;
    const int seen_end = std::min({tile.any.end, seen_.end, key0 + kBlock});
    const int end = (seen_end - key0 + kGroupKeys - 1) / kGroupKeys * kGroupKeys;
    if (begin >= end) {
      return;
    }
    Score(head, key0, begin, end, tile);
    const bool partial = tile.all.begin > key0 + begin || tile.all.end < key0 + end;
    const bool changed = Softmax(head, key0, begin, end, partial, tile);
    const int first = std::max({tile.any.begin, seen_.begin, span0_}) / kBlock * kBlock;
    const bool fresh = key0 == first;  // the tile's first keys of the span
    ValueProduct<Math> product = {
        .p = at_.p + begin / Math::kPerOperand * tile.lanes,
        .lanes = tile.lanes,
        .v = GroupValues(begin / kGroupKeys),
        .stride = value_stride_,
        .steps = (end - begin) / Math::kPerOperand,
        .sums = at_.span.sums + (int64_t{head} * shape_.rows + tile.row) * shape_.columns,
        .columns = shape_.columns,
        .fresh = fresh,
        .correction = changed && !fresh ? at_.correction : nullptr};
    if (single_tile_) {
      AddValuesOfOneTile(head, key0, begin, end, partial, tile, product);
    } else if (partial && !scales_apart_ &&
               AnyNonFinite(Math(), product.v, product.steps * value_stride_)) {
      AddRowByRow(head, key0, begin, end, tile, product);
    } else {
      AddValues(product, tile.rows, key0 + begin, at_.first + tile.row, at_.last + tile.row);
    }
  }

  void Score(int head, int key0, int begin, int end, const Tile& tile) {
    const Word* q = queries_.LaidOut(head, tile);
    if constexpr (Math::kDirect) {
      if (single_tile_) {
        KvRows rows[kGroups];
        for (int group = begin / kGroupKeys; group < end / kGroupKeys; ++group) {
          rows[group] = Readable(args_.keys, head, key0, group, seen_, Math::kKeyStride,
                                 at_.keys + group * kGroupKeys * Math::kKeyStride);
        }
        DirectScores(q, tile.lanes, rows[0].row + begin, end - begin, words_,
                     at_.scores + begin * tile.lanes, {ahead_.keys[0].row + begin, ahead_step_});
        return;
      }
    }
    for (int group = begin / kGroupKeys; group < end / kGroupKeys; ++group) {
      // One tile: keys are used at once and leave room in L1.
      const int place = single_tile_ ? 0 : group;
      KeyRange seen = {0, kGroupKeys};  // where a kernel prefetches, all of them
      if (single_tile_) {
        PackGroupKeys(head, key0, group, place);
      } else {
        const int group0 = key0 + group * kGroupKeys;
        seen = {std::max(0, tile.any.begin - group0), std::min(kGroupKeys, tile.any.end - group0)};
      }
      Scores16<Math>(q, tile.lanes, at_.keys + place * kGroupKeys * Math::kKeyStride, words_, seen,
                     at_.scores + group * kGroupKeys * tile.lanes,
                     {ahead_.keys[group].row, ahead_step_});
    }
  }

  void AddValuesOfOneTile(int head, int key0, int begin, int end, bool partial, const Tile& tile,
                          ValueProduct<Math> product) {
    if (product.correction != nullptr) {
      for (int row = 0; row < tile.rows; ++row) {
        if (product.correction[row] != 1.0f) {
          Scale(product.correction[row], shape_.columns, product.sums + row * shape_.columns);
        }
      }
      product.correction = nullptr;
    }
    for (int group = 0; group < kGroups; ++group) {
      if (group * kGroupKeys < begin || group * kGroupKeys >= end) {  // no kernel runs beside it
        PrefetchRows(ahead_.keys[group], row_bytes_);
        PrefetchRows(ahead_.values[group], row_bytes_);
      }
    }
    if constexpr (Math::kDirect) {
      // Rows of one query see the same keys, so no value needs to be looked at.
      if (dim_ == shape_.columns && (!partial || unit_->query_end - unit_->query_begin == 1)) {
        KvRows rows[kGroups];
        for (int group = begin / kGroupKeys; group < end / kGroupKeys; ++group) {
          const int words = shape_.columns / Math::kPerOperand;
          rows[group] = Readable(args_.values, head, key0, group, seen_, words,
                                 at_.values + group * kGroupKeys * words);
        }
        AddDirectValues(
            product.p, tile.lanes, tile.rows,
            {rows[0].row + begin, ahead_.values[0].row + begin, end - begin, product.fresh},
            shape_.columns, product.sums);
        return;
      }
    }
    // Values are packed, used and forgotten.
    product.v = GroupValues(0);
    product.steps = kGroupSteps;
    for (int group = begin / kGroupKeys; group < end / kGroupKeys; ++group) {
      PackGroupValues(head, key0, group, seen_);
      if (partial && !scales_apart_ &&
          AnyNonFinite(Math(), product.v, kGroupSteps * value_stride_)) {
        AddRowByRow(head, key0, group * kGroupKeys, (group + 1) * kGroupKeys, tile, product);
      } else {
        AddValuesAhead(product, tile.rows, {ahead_.values[group].row, ahead_step_});
      }
      product.p += kGroupSteps * tile.lanes;
      product.fresh = false;
    }
  }

  // Scores -> probabilities, states, corrections. Whether any correction is not 1.
  bool Softmax(int head, int key0, int begin, int end, bool partial, const Tile& tile) {
    const int state = head * shape_.lanes + tile.row;
    const auto run = [&](auto df) HWY_ATTR {
      if (scales_apart_) {
        ScaleScores(df, tile.lanes, begin, end, key_scales_, at_.scores);
      }
      if (wide_logits_) {
        WideLogits((end - begin) * tile.lanes, std::abs(args_.scale), args_.soft_cap,
                   at_.scores + begin * tile.lanes);
      } else if (args_.soft_cap > 0) {
        SoftCap(df, tile.lanes, begin, end, std::abs(args_.scale), args_.soft_cap, at_.scores);
      }
      if (partial) {
        Mask(df, tile.lanes, begin, end, key0, at_.first + tile.row, at_.last + tile.row,
             at_.scores);
      }
      const TileState states = {at_.span.max + state, at_.span.weight + state, at_.correction};
      if constexpr (Math::kDirect) {
        return scales_apart_ ? Weights<true>(df, begin, end, tile, states)
                             : Weights<false>(df, begin, end, tile, states);
      } else {
        return Weights<false>(df, begin, end, tile, states);
      }
    };
    return tile.lanes == 4   ? run(FloatTag<4>())
           : tile.lanes == 8 ? run(FloatTag<8>())
                             : run(FloatTag<16>());
  }

  template <bool kScaled, class DF>
  HWY_INLINE bool Weights(DF df, int begin, int end, const Tile& tile, const TileState& states) {
    // Nested, not `&&`: SoftmaxOf4Rows is undeclared on targets without kDirect.
    if constexpr (Math::kDirect) {
      if constexpr (hn::MaxLanes(DF()) == 4) {
        return SoftmaxOf4Rows<kScaled>(begin, end, factor_, at_.scores, value_scales_, at_.p,
                                       states);
      }
    }
    return SoftmaxBlock<Math, kScaled>(df, tile.lanes, begin, end, factor_, at_.scores,
                                       value_scales_, at_.p, states);
  }

  // A key that some rows see and others do not has a NaN or an infinite value: 0 times it is not 0.
  // Every row gets values of its own, in which what it does not see is 0.
  void AddRowByRow(int head, int key0, int begin, int end, const Tile& tile,
                   const ValueProduct<Math>& product) {
    for (int row = 0; row < tile.rows; ++row) {
      const KeyRange keys{std::max(at_.first[tile.row + row], seen_.begin),
                          std::min(at_.last[tile.row + row], seen_.end)};
      for (int group = begin / kGroupKeys; group < end / kGroupKeys; ++group) {
        PackGroupValues(head, key0, group, keys);
      }
      ValueProduct<Math> of_row = product;
      of_row.p += row;
      of_row.sums += row * shape_.columns;
      of_row.correction += product.correction != nullptr ? row : 0;
      AddValues(of_row, 1, key0 + begin, at_.first + tile.row + row, at_.last + tile.row + row);
    }
    for (int group = begin / kGroupKeys; group < end / kGroupKeys; ++group) {
      PackGroupValues(head, key0, group, seen_);  // for the next tile
    }
  }

  void WriteResults(const WorkItemState& state) const {
    shape_.ForEach([&](int head, int row, int lane, int64_t sums) {
      WriteRow(args_, queries_.Token(row), queries_.Head(head, row), state.max[lane],
               state.weight[lane], state.sums + sums);
    });
  }

  static constexpr int kGroupSteps = kGroupKeys / Math::kPerOperand;

  const AttentionArgs& args_;
  const int dim_;
  const int words_;
  const int ahead_step_;     // Ahead::step
  const size_t row_bytes_;   // of a key in memory
  const bool scales_apart_;  // of int8; else its rows are dequantised as they are packed
  const bool wide_logits_;
  const float factor_;
  alignas(64) float key_scales_[kBlock];  // of the block in hand, divided by its divisor
  alignas(64) float value_scales_[kBlock];

  const WorkItem* unit_ = nullptr;
  KeyRange seen_{0, 0};
  int value_stride_;
  int span0_ = 0;  // the first key of the span in hand
  WorkItemShape shape_;
  bool single_tile_ = false;  // prefetches are spread over the kernels: one tile of up to 16 rows

  TileRows ahead_;  // what is prefetched; kernels of larger tiles do not look at it

  WorkItemScratch<Math> at_;
  WorkItemQueries<Math> queries_{args_, at_};
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
