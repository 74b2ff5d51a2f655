// Makes operands of products from weights, in registers. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_WEIGHT_SOURCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_WEIGHT_SOURCE_INL_H_
#undef RIFFLE_LM_HEAD_WEIGHT_SOURCE_INL_H_
#else
#define RIFFLE_LM_HEAD_WEIGHT_SOURCE_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>

#include "core/bf16_dot.h"
#include "core/dot_operands-inl.h"
#include "lm_head/lanes-inl.h"
#include "lm_head/product.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::F32Fma;
using core::HWY_NAMESPACE::LoadAny;
using core::HWY_NAMESPACE::PrefetchAt;
#if RIFFLE_BF16_DOT
using core::HWY_NAMESPACE::BF16PairDot;
#endif

// Sources of operands. Load makes kLanes operands of a column from the bytes at Offset(operand),
// where `operand` is the number of the first. kPerLine: how many operands one cache line (Q8_0: one
// block) gives; each line is prefetched once. kElement: bytes of a weight.
template <DType kElementType>
struct F32Source {
  using Math = F32Fma;
  static constexpr DType kType = kElementType;
  static constexpr bool kQ8 = false;
  static constexpr size_t kElement = SizeOf(kType);
  static constexpr int kPerLine = 64 / kElement;
  static HWY_INLINE int64_t Offset(int operand) { return operand * static_cast<int64_t>(kElement); }
  static HWY_INLINE VecU32 Load(const uint8_t* from) {
    return hn::BitCast(LaneU32(), LoadF32<kType>(from));
  }
};
struct Q8F32Source {
  using Math = F32Fma;
  static constexpr bool kQ8 = true;
  static constexpr size_t kElement = 1;
  static constexpr int kPerLine = static_cast<int>(kQ8Block);
  static HWY_INLINE int64_t Offset(int operand) {
    return operand / kQ8Block * kQ8BlockBytes + 2 + operand % kQ8Block;
  }
  static HWY_INLINE VecU32 Load(const uint8_t* from) {
    const LaneF32 df;
    const hn::RebindToSigned<LaneF32> di;
    const hn::Rebind<int8_t, LaneF32> d8;
    const auto bytes = hn::LoadU(d8, reinterpret_cast<const int8_t*>(from));
    return hn::BitCast(LaneU32(), hn::ConvertTo(df, hn::PromoteTo(di, bytes)));
  }
};
#if RIFFLE_BF16_DOT
struct BF16PairSource {
  using Math = BF16PairDot;
  static constexpr DType kType = DType::kBF16;
  static constexpr bool kQ8 = false;
  static constexpr size_t kElement = 2;
  static constexpr int kPerLine = 16;
  static HWY_INLINE int64_t Offset(int operand) { return 4 * operand; }
  static HWY_INLINE VecU32 Load(const uint8_t* from) { return LoadAny(LaneU32(), from); }
};
struct Q8BF16PairSource {
  using Math = BF16PairDot;
  static constexpr bool kQ8 = true;
  static constexpr size_t kElement = 1;
  static constexpr int kPerLine = static_cast<int>(kQ8Block) / 2;
  static HWY_INLINE int64_t Offset(int operand) { return Q8F32Source::Offset(2 * operand); }
  static HWY_INLINE VecU32 Load(const uint8_t* from) {
    // The f32 of an integer of magnitude up to 128 has zeros in its lower half, so its upper half
    // is its bf16.
    const hn::Repartition<uint16_t, LaneU32> du16;
    const auto low = Q8F32Source::Load(from);
    const auto high = Q8F32Source::Load(from + kLanes);
    return hn::BitCast(LaneU32(),
                       hn::ConcatOdd(du16, hn::BitCast(du16, high), hn::BitCast(du16, low)));
  }
};
#endif

// A step packs kLanes vectors: kStepOperands operands for each of kGroups groups of kLanes columns.
template <class Source>
struct PackStep {
  static constexpr int kGroups = 1;
  static constexpr int kStepOperands = kLanes;

  // v[i] = operand `operand` + i of the kLanes columns from `column` on.
  template <bool kPrefetch>
  static HWY_INLINE void Load(const WeightTile& tile, int column, int operand,
                              VecU32 (&v)[kLanes]) {
    const int64_t offset = Source::Offset(operand);
    const int64_t ahead = tile.Prefetched(offset);
    for (int i = 0; i < kLanes; ++i) {
      if (kPrefetch && operand % Source::kPerLine == 0) {
        PrefetchAt(tile.column[column + i], ahead);
      }
      v[i] = Source::Load(tile.column[column + i] + tile.offset + offset);
    }
    TransposeLanes(v);
  }
};

#if RIFFLE_BF16_DOT && HWY_CAP_GE512
// Q8_0 to pairs of bf16: transposes half a block of 32 columns while the elements are bytes, then
// widens them through tables of 128 bytes. Takes half the instructions of the general step.
template <>
struct PackStep<Q8BF16PairSource> {
  static constexpr int kGroups = 2;
  static constexpr int kStepOperands = kLanes / 2;
  using D8 = hn::CappedTag<uint8_t, 64>;
  using V8 = hn::Vec<D8>;

  // The lower and upper bytes of the bf16 of 0..127, and the upper bytes of those of -128..-1.
  struct Tables {
    alignas(64) uint8_t low[128];  // index: magnitude % 128; 128 shares entry 0, both bytes are 0
    alignas(64) uint8_t high[128];
    alignas(64) uint8_t high_negative[128];

    constexpr Tables() : low(), high(), high_negative() {
      for (int i = 0; i < 128; ++i) {
        const uint32_t bits = __builtin_bit_cast(uint32_t, static_cast<float>(i));
        const uint32_t negative = __builtin_bit_cast(uint32_t, static_cast<float>(i - 128));
        low[i] = static_cast<uint8_t>(bits >> 16);
        high[i] = static_cast<uint8_t>(bits >> 24);
        high_negative[i] = static_cast<uint8_t>(negative >> 24);
      }
    }
  };

  // table[index % 128]
  static HWY_INLINE V8 LookUp(const uint8_t* table, V8 index) {
    const D8 d;
    return V8{
        _mm512_permutex2var_epi8(hn::Load(d, table).raw, index.raw, hn::Load(d, table + 64).raw)};
  }

  // 16 bytes of each of four columns, each in a 16-byte block of the vector.
  template <bool kPrefetch>
  static HWY_INLINE V8 FourColumns(const uint8_t* const* column, int64_t offset, int64_t ahead) {
    const D8 d;
    const hn::CappedTag<uint8_t, 16> d16;
    if constexpr (kPrefetch) {
      PrefetchAt(column[0], ahead);
      PrefetchAt(column[4], ahead);
      PrefetchAt(column[8], ahead);
      PrefetchAt(column[12], ahead);
    }
    V8 v = hn::ResizeBitCast(d, hn::LoadU(d16, column[0] + offset));
    v = hn::InsertBlock<1>(v, hn::LoadU(d16, column[4] + offset));
    v = hn::InsertBlock<2>(v, hn::LoadU(d16, column[8] + offset));
    return hn::InsertBlock<3>(v, hn::LoadU(d16, column[12] + offset));
  }

  // v[8 g + i] = operand `operand` + i of the columns `column` + 16 g + 0..15.
  template <bool kPrefetch>
  static HWY_INLINE void Load(const WeightTile& tile, int column, int operand,
                              VecU32 (&v)[kLanes]) {
    static constexpr Tables kTables;
    const D8 d;
    const hn::Repartition<int8_t, D8> di;
    const uint8_t* const* columns = tile.column + column;
    const int64_t offset = Q8BF16PairSource::Offset(operand);
    const int64_t ahead = tile.Prefetched(offset);
    // 16-byte block b of rows[i] holds column 4 b + i; rows[4..7] hold the second group of columns.
    // Block b of all rows is an 8 x 8 matrix of byte pairs. Transposed, each of its rows holds one
    // pair of all columns.
    V8 rows[8];
    for (int i = 0; i < 8; ++i) {
      const uint8_t* const* four = columns + i / 4 * kLanes + i % 4;
      rows[i] = FourColumns<kPrefetch>(four, tile.offset + offset, ahead);
    }
    V8 twos[8];
    V8 fours[8];
    V8 pairs[8];
    for (int i = 0; i < 4; ++i) {
      Interleave(rows[i], rows[i + 4], twos[i], twos[i + 4]);
    }
    for (int i = 0; i < 8; i += 4) {
      Interleave(twos[i], twos[i + 2], fours[i], fours[i + 2]);
      Interleave(twos[i + 1], twos[i + 3], fours[i + 1], fours[i + 3]);
    }
    for (int i = 0; i < 8; i += 2) {
      Interleave(fours[i], fours[i + 1], pairs[i], pairs[i + 1]);
    }
    for (int i = 0; i < 8; ++i) {
      const auto q = hn::BitCast(di, pairs[i]);
      const V8 low = LookUp(kTables.low, hn::BitCast(d, hn::Abs(q)));
      const V8 high =
          hn::IfThenElse(hn::RebindMask(d, hn::IsNegative(q)),
                         LookUp(kTables.high_negative, pairs[i]), LookUp(kTables.high, pairs[i]));
      v[i] = hn::BitCast(LaneU32(), hn::InterleaveLower(d, low, high));
      v[i + 8] = hn::BitCast(LaneU32(), hn::InterleaveUpper(d, low, high));
    }
  }

  static HWY_INLINE void Interleave(V8 a, V8 b, V8& lower, V8& upper) {
    const D8 d;
    const hn::Repartition<uint16_t, D8> d2;
    const auto a2 = hn::BitCast(d2, a);
    const auto b2 = hn::BitCast(d2, b);
    lower = hn::BitCast(d, hn::InterleaveLower(d2, a2, b2));
    upper = hn::BitCast(d, hn::InterleaveUpper(d2, a2, b2));
  }
};
#endif

// A row of a kernel table: the functions for all sources, in the order of WeightSource, null for
// those that this target lacks. `select`: []<class Source> { return Kernel<Source>; }.
template <typename Select>
constexpr auto ForWeightSources(const Select& select) {
  using Function = decltype(select.template operator()<F32Source<DType::kF32>>());
  return std::array<Function, kWeightSources> {
    select.template operator()<F32Source<DType::kF32>>(),
        select.template operator()<F32Source<DType::kF16>>(),
        select.template operator()<F32Source<DType::kBF16>>(),
        select.template operator()<Q8F32Source>(),
#if RIFFLE_BF16_DOT
        select.template operator()<BF16PairSource>(),
        select.template operator()<Q8BF16PairSource>(),
#endif
  };
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
