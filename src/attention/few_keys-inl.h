// Sequences of a few keys: rows of all heads and sequences pass through the kernels side by side,
// 16 at a time, each with keys of its own. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_FEW_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_FEW_KEYS_INL_H_
#undef RIFFLE_ATTENTION_FEW_KEYS_INL_H_
#else
#define RIFFLE_ATTENTION_FEW_KEYS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention/few_keys_rows.h"
#include "attention/results-inl.h"
#include "attention/work_item_context-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One step of as many chains as there are lanes.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V LaneStep(F32Math, DF, V k, V x, V sum) {
  return hn::MulAdd(k, x, sum);
}
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
template <class DF, class VW, class V = hn::Vec<DF>>
HWY_INLINE V LaneStep(BF16Math, DF df, VW k, VW x, V sum) {
  const hn::Repartition<hwy::bfloat16_t, DF> dbf;
  auto unused = hn::Zero(df);
  return hn::ReorderWidenMulAccumulate(df, hn::BitCast(dbf, k), hn::BitCast(dbf, x), sum, unused);
}
#endif

// scores[key][lane] for kKeys keys; q and keys[key] are [operands][kFewKeysLanes].
template <class Math, int kKeys, typename Operand = typename Math::Operand>
HWY_INLINE void LaneScores(const Operand* HWY_RESTRICT q, const Operand* HWY_RESTRICT keys,
                           int operands, float* HWY_RESTRICT scores) {
  const FloatTag<kFewKeysLanes> df;
  const hn::Rebind<Operand, decltype(df)> dw;
  const int size = operands * kFewKeysLanes;
  for (int lane = 0; lane < kFewKeysLanes; lane += static_cast<int>(hn::MaxLanes(df))) {
    hn::Vec<decltype(df)> sum[kKeys];
    for (auto& s : sum) {
      s = hn::Zero(df);
    }
    for (int at = lane; at < size; at += kFewKeysLanes) {
      const auto x = hn::Load(dw, q + at);
      for (int key = 0; key < kKeys; ++key) {
        sum[key] = LaneStep(Math(), df, hn::Load(dw, keys + key * size + at), x, sum[key]);
      }
    }
    for (int key = 0; key < kKeys; ++key) {
      hn::Store(sum[key], df, scores + key * kFewKeysLanes + lane);
    }
  }
}

// sums[0, dim) = the sum of a lane's p * rows over its keys.
//   p     [keys][kFewKeysLanes], from the lane on; rows likewise
template <RowCode kCode>
HWY_INLINE void SumFewValues(const float* p, const uint8_t* const* rows, int keys, int dim,
                             float* HWY_RESTRICT sums) {
  ForElements(0, dim, [&](auto df, int i) HWY_ATTR {
    auto sum = hn::Zero(df);
    for (int key = 0; key < keys; ++key) {
      const auto v = LoadElements<kCode>(df, rows[key * kFewKeysLanes] + kElementBytes<kCode> * i);
      sum = F32Math::Step(df, p[key * kFewKeysLanes], v, sum);
    }
    hn::Store(sum, df, sums + i);
  });
}

HWY_INLINE void AddFewValues(F32Math, RowCode code, const float* p, const uint8_t* const* rows,
                             int keys, int dim, float* sums) {
  if (code == RowCode::kF32) {
    SumFewValues<RowCode::kF32>(p, rows, keys, dim, sums);
  } else if (code == RowCode::kF16) {
    SumFewValues<RowCode::kF16>(p, rows, keys, dim, sums);
  } else {
    SumFewValues<RowCode::kBF16>(p, rows, keys, dim, sums);
  }
}

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
// The same with pairs of keys, p [keys / 2][kFewKeysLanes]; the row behind the last key is zeros.
HWY_INLINE void AddFewValues(BF16Math, RowCode, const uint32_t* p, const uint8_t* const* rows,
                             int keys, int dim, float* HWY_RESTRICT sums) {
  const auto add = [&](auto df, int c) HWY_ATTR {
    const hn::Repartition<uint16_t, decltype(df)> dh;
    constexpr int kN = static_cast<int>(hn::MaxLanes(df));
    auto low = hn::Zero(df);
    auto high = hn::Zero(df);
    for (int key = 0; key < keys; key += 2) {
      const auto even = LoadAny(dh, rows[key * kFewKeysLanes] + 2 * c);
      const auto odd = LoadAny(dh, rows[(key + 1) * kFewKeysLanes] + 2 * c);
      const uint32_t a = p[key / 2 * kFewKeysLanes];
      low = BF16Math::Step(df, a, hn::InterleaveWholeLower(dh, even, odd), low);
      high = BF16Math::Step(df, a, hn::InterleaveWholeUpper(dh, even, odd), high);
    }
    hn::Store(low, df, sums + c);
    hn::Store(high, df, sums + c + kN);
  };
  int c = 0;
  constexpr int kWide = 2 * static_cast<int>(hn::MaxLanes(FloatTag<16>()));
  for (; c + kWide <= dim; c += kWide) {
    add(FloatTag<16>(), c);
  }
  for (; c < dim; c += 8) {
    add(FloatTag<4>(), c);
  }
}
#endif

// One score is a chain of head_dim steps that wait for each other. A head with a key or two leaves
// the multipliers idle in it and pays for a whole group of keys; 16 rows of any heads and sequences
// fill the lanes. Bits are those of the other strategies: the same chains.
template <class Math>
class FewKeys {
  using Operand = typename Math::Operand;

 public:
  explicit FewKeys(const WorkItemContext<Math>& context)
      : context_(context), operands_(context.args.keys.dim / Math::kPerOperand) {}

  void Run(const WorkItem* begin, const WorkItem* end) {
    const AttentionArgs& args = context_.args;
    for (const WorkItem* item = begin; item != end; ++item) {
      if (args.kv_lens[item->seq] != keys_) {  // lanes have as many keys
        Flush();
        keys_ = args.kv_lens[item->seq];
      }
      Add(*item);
    }
    Flush();
  }

 private:
  void Add(const WorkItem& item) {
    const AttentionArgs& args = context_.args;
    int64_t key_at[kMaxFewKeys];
    int64_t value_at[kMaxFewKeys];
    for (int key = 0; key < keys_; ++key) {
      key_at[key] = FewKeysRow(args, args.keys, item.seq, key);
      value_at[key] = FewKeysRow(args, args.values, item.seq, key);
    }
    const int first = keys_ - args.q_len(item.seq);
    for (int head = item.head_begin; head < item.head_end; ++head) {
      const uint8_t* keys = args.keys.data + head * args.keys.head_stride;
      const uint8_t* values = args.values.data + head * args.values.head_stride;
      for (int query = item.query_begin; query < item.query_end; ++query) {
        const int last = args.Seen(item.seq, first + query).end;
        for (int i = 0; i < args.shape.group; ++i) {
          const int lane = lanes_++;
          rows_[lane] = {int64_t{args.first_token(item.seq)} + query,
                         int64_t{head} * args.shape.group + i, first + query};
          last_[lane] = last;
          for (int key = 0; key < keys_; ++key) {
            key_rows_[key * kFewKeysLanes + lane] = key < last ? keys + key_at[key] : kZeroRow;
            value_rows_[key * kFewKeysLanes + lane] =
                key < last ? values + value_at[key] : kZeroRow;
          }
          if (lanes_ == kFewKeysLanes) {
            Flush();
          }
        }
      }
    }
  }

  // The results of the rows that have been added.
  void Flush() {
    if (lanes_ == 0) {
      return;
    }
    for (int lane = lanes_; lane < kFewKeysLanes; ++lane) {
      last_[lane] = 0;
      for (int key = 0; key < keys_; ++key) {
        key_rows_[key * kFewKeysLanes + lane] = kZeroRow;
      }
    }
    Score();
    alignas(64) float max[kFewKeysLanes];
    alignas(64) float weight[kFewKeysLanes];
    std::fill_n(max, kFewKeysLanes, -std::numeric_limits<float>::infinity());
    std::fill_n(weight, kFewKeysLanes, 0.0f);
    const bool masked = Weigh({max, weight, context_.at.correction});
    for (int lane = 0; lane < lanes_; ++lane) {
      Write(lane, masked, max[lane], weight[lane]);
    }
    lanes_ = 0;
  }

  void Score() {
    const AttentionArgs& args = context_.args;
    const auto& at = context_.at;
    const uint8_t* q[kFewKeysLanes];
    for (int lane = 0; lane < kFewKeysLanes; ++lane) {
      const BiasRow& row = rows_[lane];
      q[lane] = lane < lanes_
                    ? args.q + row.token * args.q_token_stride + row.head * args.q_head_stride
                    : kZeroRow;
    }
    PackQueryRows(Math(), args.q_dtype, q, operands_, args.scale_sign(), kFewKeysLanes, at.q);
    constexpr int kAtOnce = 4;  // what at.keys has room for
    for (int key = 0; key < keys_; key += kAtOnce) {
      const int count = std::min(kAtOnce, keys_ - key);
      for (int i = 0; i < count; ++i) {
        PackQueryRows(Math(), static_cast<DType>(args.keys.code),
                      key_rows_ + (key + i) * kFewKeysLanes, operands_, 1.0f, kFewKeysLanes,
                      at.keys + i * operands_ * kFewKeysLanes);
      }
      float* scores = at.scores + key * kFewKeysLanes;
      if (count == 1) {
        LaneScores<Math, 1>(at.q, at.keys, operands_, scores);
      } else if (count == 2) {
        LaneScores<Math, 2>(at.q, at.keys, operands_, scores);
      } else if (count == 3) {
        LaneScores<Math, 3>(at.q, at.keys, operands_, scores);
      } else {
        LaneScores<Math, 4>(at.q, at.keys, operands_, scores);
      }
    }
  }

  // Scores -> probabilities and states. Whether the mask may hide keys.
  bool Weigh(const TileState& states) const {
    const AttentionArgs& args = context_.args;
    const auto& at = context_.at;
    std::fill_n(at.first, kFewKeysLanes, 0);
    std::copy_n(last_, kFewKeysLanes, at.last);
    TileBlock block{};
    block.end = (keys_ + 3) / 4 * 4;
    block.partial = true;
    block.masked = args.mask.data != nullptr;
    block.fresh = true;
    if (args.biased()) {
      FillBias(
          args.mask, block.masked, args.slopes, 0, 0, block.end, keys_, lanes_, kFewKeysLanes,
          [&](int lane) { return rows_[lane]; }, at.bias);
    }
    const Tile tile{0, lanes_, kFewKeysLanes, {0, keys_}, {0, 0}};
    context_.softmax.Run(block, tile, states);
    return block.masked;
  }

  void Write(int lane, bool masked, float max, float weight) {
    const AttentionArgs& args = context_.args;
    const auto& at = context_.at;
    // What a hidden value holds does not matter: 0 times it might be NaN.
    for (int key = 0; masked && key < keys_; ++key) {
      if (at.bias[key * kFewKeysLanes + lane] == kMinusInf) {
        value_rows_[key * kFewKeysLanes + lane] = kZeroRow;
      }
    }
    value_rows_[keys_ * kFewKeysLanes + lane] = kZeroRow;
    float* sums = at.split.sums;
    AddFewValues(Math(), args.values.code, at.p + lane, value_rows_ + lane, keys_, args.values.dim,
                 sums);
    WriteRow(args, rows_[lane].token, rows_[lane].head, max, weight, sums);
  }

  const WorkItemContext<Math>& context_;
  const int operands_;
  int keys_ = 0;   // of every lane
  int lanes_ = 0;  // that have a row
  BiasRow rows_[kFewKeysLanes];
  alignas(64) int32_t last_[kFewKeysLanes];  // a row sees the keys [0, last)
  const uint8_t* key_rows_[kMaxFewKeys * kFewKeysLanes];
  const uint8_t* value_rows_[(kMaxFewKeys + 1) * kFewKeysLanes];
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
