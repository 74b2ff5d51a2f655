// Sequences of a few keys: rows of all heads and sequences pass through the kernels side by side,
// each with keys of its own, or many rows of a head share its keys. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_FEW_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_FEW_KEYS_INL_H_
#undef RIFFLE_ATTENTION_FEW_KEYS_INL_H_
#else
#define RIFFLE_ATTENTION_FEW_KEYS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "attention/few_keys_rows.h"
#include "attention/results-inl.h"
#include "attention/work_item_context-inl.h"
#include "core/bf16_dot.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One step of as many chains as there are lanes.
template <class DF, class V = hn::Vec<DF>>
HWY_INLINE V LaneStep(F32Math, DF, V k, V x, V sum) {
  return hn::MulAdd(k, x, sum);
}
#if RIFFLE_BF16_DOT
template <class DF, class VW, class V = hn::Vec<DF>>
HWY_INLINE V LaneStep(BF16Math, DF df, VW k, VW x, V sum) {
  const hn::Repartition<hwy::bfloat16_t, DF> dbf;
  auto unused = hn::Zero(df);
  return hn::ReorderWidenMulAccumulate(df, hn::BitCast(dbf, k), hn::BitCast(dbf, x), sum, unused);
}
#endif

// scores[key][lane] of kKeys keys of each lane, kVecs vectors of lanes.
//   q, keys[key]  [operands][lanes]
template <class Math, int kKeys, int kVecs, class DF, typename Operand = typename Math::Operand>
HWY_INLINE void RowLaneScores(DF df, const Operand* HWY_RESTRICT q,
                              const Operand* HWY_RESTRICT keys, int operands, int lanes,
                              float* HWY_RESTRICT scores) {
  const hn::Rebind<Operand, DF> dw;
  constexpr int kN = static_cast<int>(hn::MaxLanes(DF()));
  const int size = operands * lanes;
  hn::Vec<DF> sum[kKeys][kVecs];
  for (auto& key : sum) {
    for (auto& s : key) {
      s = hn::Zero(df);
    }
  }
  for (int at = 0; at < size; at += lanes) {
    for (int v = 0; v < kVecs; ++v) {
      const auto x = hn::Load(dw, q + at + v * kN);
      for (int key = 0; key < kKeys; ++key) {
        const auto k = hn::Load(dw, keys + key * size + at + v * kN);
        sum[key][v] = LaneStep(Math(), df, k, x, sum[key][v]);
      }
    }
  }
  for (int key = 0; key < kKeys; ++key) {
    for (int v = 0; v < kVecs; ++v) {
      hn::Store(sum[key][v], df, scores + key * lanes + v * kN);
    }
  }
}

// f(tag, number of keys, number of vectors, first lane) for 1 to 4 keys and all lanes, 16 or 32;
// the numbers are constants.
template <class F>
HWY_INLINE void ForLanes(int keys, int lanes, const F& f) {
  const FloatTag<16> df;
  constexpr int kN = static_cast<int>(hn::MaxLanes(df));
  const auto all = [&](auto count) HWY_ATTR {
    int lane = 0;
    for (; lane + 2 * kN <= lanes; lane += 2 * kN) {
      f(df, count, std::integral_constant<int, 2>(), lane);
    }
    if (lane < lanes) {
      f(df, count, std::integral_constant<int, 1>(), lane);
    }
  };
  if (keys == 1) {
    all(std::integral_constant<int, 1>());
  } else if (keys == 2) {
    all(std::integral_constant<int, 2>());
  } else if (keys == 3) {
    all(std::integral_constant<int, 3>());
  } else {
    all(std::integral_constant<int, 4>());
  }
}

// Copies a key's row of f32, f16 or bf16 as operands.
HWY_INLINE void CopyKey(F32Math, RowCode code, const uint8_t* row, int dim, float* to) {
  ToF32(static_cast<DType>(code), row, dim, to);
}
#if RIFFLE_BF16_DOT
HWY_INLINE void CopyKey(BF16Math, RowCode, const uint8_t* row, int dim, uint32_t* to) {
  std::memcpy(to, row, static_cast<size_t>(dim) * 2);
}
#endif

// The values of a lane and their probabilities.
template <typename Operand>
struct LaneValues {
  const Operand* p;            // [keys / kPerOperand][lanes], from the lane on
  const uint8_t* const* rows;  // [keys][kFewKeysLanes], likewise
  int lanes;
  int keys;
  int dim;
};

// row.out[0, dim) of `dtype` = row.factor * the sum of p * rows over the keys.
template <RowCode kCode>
HWY_INLINE void WriteFewValues(const LaneValues<float>& v, const RowResult& row, DType dtype) {
  const auto bytes = static_cast<int>(SizeOf(dtype));
  ForElements(0, v.dim, [&](auto df, int i) HWY_ATTR {
    auto sum = hn::Zero(df);
    for (int key = 0; key < v.keys; ++key) {
      const uint8_t* from = v.rows[key * kFewKeysLanes] + kElementBytes<kCode> * i;
      sum = F32Math::Step(df, v.p[key * v.lanes], LoadElements<kCode>(df, from), sum);
    }
    StoreScaled(df, dtype, sum, hn::Set(df, row.factor), row.out + bytes * i);
  });
}

HWY_INLINE void WriteFewValues(RowCode code, const LaneValues<float>& v, const RowResult& row,
                               DType dtype) {
  if (code == RowCode::kF32) {
    WriteFewValues<RowCode::kF32>(v, row, dtype);
  } else if (code == RowCode::kF16) {
    WriteFewValues<RowCode::kF16>(v, row, dtype);
  } else {
    WriteFewValues<RowCode::kBF16>(v, row, dtype);
  }
}

#if RIFFLE_BF16_DOT
// The same with pairs of keys; the row after the last key is zeros.
HWY_INLINE void WriteFewValues(RowCode, const LaneValues<uint32_t>& v, const RowResult& row,
                               DType dtype) {
  const auto bytes = static_cast<int>(SizeOf(dtype));
  const auto write = [&](auto df, int c) HWY_ATTR {
    const hn::Repartition<uint16_t, decltype(df)> dh;
    constexpr int kN = static_cast<int>(hn::MaxLanes(df));
    auto low = hn::Zero(df);
    auto high = hn::Zero(df);
    for (int key = 0; key < v.keys; key += 2) {
      const auto even = LoadAny(dh, v.rows[key * kFewKeysLanes] + 2 * c);
      const auto odd = LoadAny(dh, v.rows[(key + 1) * kFewKeysLanes] + 2 * c);
      const uint32_t a = v.p[key / 2 * v.lanes];
      low = BF16Math::Step(df, a, hn::InterleaveWholeLower(dh, even, odd), low);
      high = BF16Math::Step(df, a, hn::InterleaveWholeUpper(dh, even, odd), high);
    }
    const auto factor = hn::Set(df, row.factor);
    StoreScaled(df, dtype, low, factor, row.out + bytes * c);
    StoreScaled(df, dtype, high, factor, row.out + bytes * (c + kN));
  };
  int c = 0;
  constexpr int kWide = 2 * static_cast<int>(hn::MaxLanes(FloatTag<16>()));
  for (; c + kWide <= v.dim; c += kWide) {
    write(FloatTag<16>(), c);
  }
  for (; c < v.dim; c += 8) {
    write(FloatTag<4>(), c);
  }
}
#endif

// A score is a chain of head_dim steps, each waiting for the one before. A head with a key or two
// would leave the multipliers idle and pay for a whole group of keys, so rows of any heads and
// sequences fill the lanes. The chains, and so the bits, are those of the other strategies.
template <class Math>
class FewKeys {
  using Operand = typename Math::Operand;

 public:
  explicit FewKeys(const WorkItemContext<Math>& context)
      : context_(context), operands_(context.args.keys.dim / Math::kPerOperand) {}

  void Run(const WorkItem* begin, const WorkItem* end) {
    const AttentionArgs& args = context_.args;
    for (const WorkItem* item = begin; item != end; ++item) {
      if (args.kv_lens[item->seq] != keys_) {  // all lanes have the same number of keys
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
    const int rows = (item.query_end - item.query_begin) * args.shape.group;
    const bool shared = rows >= kFewKeysSharedRows;
    for (int key = 0; key < keys_; ++key) {
      key_at_[key] = FewKeysRow(args, args.keys, item.seq, key);
      value_at_[key] = FewKeysRow(args, args.values, item.seq, key);
    }
    for (int head = item.head_begin; head < item.head_end; ++head) {
      if (shared) {
        Flush();
        PackSharedKeys(args.keys.data + head * args.keys.head_stride);
      }
      AddRows(item, head);
      if (shared) {
        Flush();
        shared_ = false;
      }
    }
  }

  void AddRows(const WorkItem& item, int head) {
    const AttentionArgs& args = context_.args;
    const int first = keys_ - args.q_len(item.seq);
    const uint8_t* keys = args.keys.data + head * args.keys.head_stride;
    const uint8_t* values = args.values.data + head * args.values.head_stride;
    for (int query = item.query_begin; query < item.query_end; ++query) {
      const int last = args.VisibleKeys(item.seq, first + query).end;
      for (int i = 0; i < args.shape.group; ++i) {
        const int lane = lanes_++;
        rows_[lane] = {int64_t{args.first_token(item.seq)} + query,
                       int64_t{head} * args.shape.group + i, first + query};
        last_[lane] = last;
        for (int key = 0; key < keys_; ++key) {
          const bool seen = key < last;
          key_rows_[key * kFewKeysLanes + lane] = seen ? keys + key_at_[key] : kZeroRow;
          value_rows_[key * kFewKeysLanes + lane] = seen ? values + value_at_[key] : kZeroRow;
        }
        if (lanes_ == kFewKeysLanes) {
          Flush();
        }
      }
    }
  }

  // Packs the keys of a head for all its rows. What a row does not see is masked later.
  void PackSharedKeys(const uint8_t* head) {
    const KvPages& keys = context_.args.keys;
    for (int key = 0; key < keys_; ++key) {
      CopyKey(Math(), keys.code, head + key_at_[key], keys.dim,
              context_.scratch.keys + key * context_.key_stride);
    }
    shared_ = true;
  }

  // Writes the results of the rows that have been added.
  void Flush() {
    if (lanes_ == 0) {
      return;
    }
    const int lanes = lanes_ <= 16 ? 16 : kFewKeysLanes;
    for (int lane = lanes_; lane < lanes; ++lane) {
      last_[lane] = 0;
      for (int key = 0; key < keys_; ++key) {
        key_rows_[key * kFewKeysLanes + lane] = kZeroRow;
      }
    }
    PackQueries(lanes);
    if (shared_) {
      ScoreShared(lanes);
    } else {
      Score(lanes);
    }
    alignas(64) float max[kFewKeysLanes];
    alignas(64) float weight[kFewKeysLanes];
    std::fill_n(max, kFewKeysLanes, -std::numeric_limits<float>::infinity());
    std::fill_n(weight, kFewKeysLanes, 0.0f);
    const bool masked = Weigh(lanes, {max, weight, context_.scratch.correction});
    for (int lane = 0; lane < lanes_; ++lane) {
      Write(lane, lanes, masked, max[lane], weight[lane]);
    }
    lanes_ = 0;
  }

  void PackQueries(int lanes) {
    const AttentionArgs& args = context_.args;
    const uint8_t* q[kFewKeysLanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const BiasRow& row = rows_[lane];
      q[lane] = lane < lanes_
                    ? args.q + row.token * args.q_token_stride + row.head * args.q_head_stride
                    : kZeroRow;
    }
    PackQueryRows(Math(), args.q_dtype, q, operands_, args.scale_sign(), lanes, context_.scratch.q);
  }

  // Every lane has keys of its own.
  void Score(int lanes) {
    const auto& scratch = context_.scratch;
    const int at_once = 64 / lanes;  // what scratch.keys has room for: 4 or 2
    for (int key = 0; key < keys_; key += at_once) {
      const int count = std::min(at_once, keys_ - key);
      for (int i = 0; i < count; ++i) {
        PackQueryRows(Math(), static_cast<DType>(context_.args.keys.code),
                      key_rows_ + (key + i) * kFewKeysLanes, operands_, 1.0f, lanes,
                      scratch.keys + i * operands_ * lanes);
      }
      ForLanes(count, lanes, [&](auto df, auto keys, auto vecs, int lane) HWY_ATTR {
        RowLaneScores<Math, decltype(keys)::value, decltype(vecs)::value>(
            df, scratch.q + lane, scratch.keys + lane, operands_, lanes,
            scratch.scores + key * lanes + lane);
      });
    }
  }

  // All lanes have the keys of PackSharedKeys.
  void ScoreShared(int lanes) {
    const auto& scratch = context_.scratch;
    const PackedKeys<Math> packed{scratch.keys, context_.key_stride, 0, operands_};
    for (int key = 0; key < keys_; key += 4) {
      ForLanes(
          std::min(4, keys_ - key), lanes, [&](auto df, auto keys, auto vecs, int lane) HWY_ATTR {
            ScoreKernel<Math, decltype(keys)::value, decltype(vecs)::value, false>(
                df, scratch.q + lane, lanes, packed, key, scratch.scores + key * lanes + lane, {});
          });
    }
  }

  // Scores -> probabilities and states. Returns whether the mask may hide keys.
  bool Weigh(int lanes, const TileState& states) const {
    const AttentionArgs& args = context_.args;
    const auto& scratch = context_.scratch;
    std::fill_n(scratch.first, lanes, 0);
    std::copy_n(last_, lanes, scratch.last);
    TileBlock block{};
    block.end = (keys_ + 3) / 4 * 4;
    block.has_hidden_keys = block.hidden_by_position = true;
    block.masked = args.mask.data != nullptr;
    block.overwrite_sums = true;
    if (args.biased()) {
      FillBias(
          args.mask, block.masked, args.slopes, 0, 0, block.end, keys_, lanes_, lanes,
          [&](int lane) { return rows_[lane]; }, scratch.bias);
    }
    const Tile tile{0, lanes_, lanes, {0, keys_}, {0, 0}};
    context_.softmax.Run(block, tile, states);
    return block.masked;
  }

  void Write(int lane, int lanes, bool masked, float max, float weight) {
    const AttentionArgs& args = context_.args;
    const auto& scratch = context_.scratch;
    // Hidden values become zeros: 0 times a NaN or an infinity would be NaN.
    for (int key = 0; masked && key < keys_; ++key) {
      if (scratch.bias[key * lanes + lane] == kMinusInf) {
        value_rows_[key * kFewKeysLanes + lane] = kZeroRow;
      }
    }
    value_rows_[keys_ * kFewKeysLanes + lane] = kZeroRow;
    const RowResult row = BeginRow(args, rows_[lane].token, rows_[lane].head, max, weight);
    if (row.out != nullptr) {
      const LaneValues<Operand> values{scratch.p + lane, value_rows_ + lane, lanes, keys_,
                                       args.values.dim};
      WriteFewValues(args.values.code, values, row, args.q_dtype);
    }
  }

  const WorkItemContext<Math>& context_;
  const int operands_;
  int keys_ = 0;                 // of every lane
  int lanes_ = 0;                // that have a row
  bool shared_ = false;          // all lanes have the same keys, which scratch.keys holds
  int64_t key_at_[kMaxFewKeys];  // bytes from a head's first row, of the item's sequence
  int64_t value_at_[kMaxFewKeys];
  BiasRow rows_[kFewKeysLanes];
  alignas(64) int32_t last_[kFewKeysLanes];  // a row sees the keys [0, last)
  const uint8_t* key_rows_[kMaxFewKeys * kFewKeysLanes];
  const uint8_t* value_rows_[(kMaxFewKeys + 1) * kFewKeysLanes];
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
