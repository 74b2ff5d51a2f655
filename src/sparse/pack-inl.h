// Packed operands of the indexer: those of kPanel keys, and of kHeadGroup heads of a query, side by
// side. Included once per SIMD target.
#if defined(RIFFLE_SPARSE_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_SPARSE_PACK_INL_H_
#undef RIFFLE_SPARSE_PACK_INL_H_
#else
#define RIFFLE_SPARSE_PACK_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cstring>

#include "core/int8_dot-inl.h"
#include "sparse/indexer_args.h"
#include "sparse/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Int8Dot;

// Keys of a panel and heads of a group: their sums take 16 of 32 registers, or 8 of 16.
constexpr int kPanel = 2 * kLanes;
constexpr int kHeadGroup = HWY_CAP_GE512 || HWY_ARCH_ARM_A64 ? 8 : 4;
static_assert(kTileKeys % kPanel == 0);

// 16 bytes of each of rows 0, 4, 8 ..., one row to a 16-byte block of the vector.
HWY_INLINE VecU32 LoadFourthRows(const uint8_t* const* row, int64_t offset) {
  const hn::Repartition<uint8_t, LaneU32> d;
  const hn::CappedTag<uint8_t, 16> d16;
  auto v = hn::ResizeBitCast(d, hn::LoadU(d16, row[0] + offset));
  if constexpr (kLanes >= 8) {
    v = hn::InsertBlock<1>(v, hn::LoadU(d16, row[4] + offset));
  }
  if constexpr (kLanes >= 16) {
    v = hn::InsertBlock<2>(v, hn::LoadU(d16, row[8] + offset));
    v = hn::InsertBlock<3>(v, hn::LoadU(d16, row[12] + offset));
  }
  return hn::BitCast(LaneU32(), v);
}

// Calls put(word, vector) for each of the `words` 32-bit words of kLanes rows, where the vector is
// that word of all rows. `words` is a multiple of 4.
template <class Put>
HWY_INLINE void TransposeWords(const uint8_t* const* row, int words, const Put& put) {
  HWY_DASSERT(words % 4 == 0);
  const LaneU32 d;
  for (int word = 0; word < words; word += 4) {
    const auto r0 = LoadFourthRows(row, 4 * word);
    const auto r1 = LoadFourthRows(row + 1, 4 * word);
    const auto r2 = LoadFourthRows(row + 2, 4 * word);
    const auto r3 = LoadFourthRows(row + 3, 4 * word);
    const auto a = hn::InterleaveLower(d, r0, r2);
    const auto b = hn::InterleaveLower(d, r1, r3);
    const auto c = hn::InterleaveUpper(d, r0, r2);
    const auto e = hn::InterleaveUpper(d, r1, r3);
    put(word, hn::InterleaveLower(d, a, b));
    put(word + 1, hn::InterleaveUpper(d, a, b));
    put(word + 2, hn::InterleaveLower(d, c, e));
    put(word + 3, hn::InterleaveUpper(d, c, e));
  }
}

// Transposes rows of `operands` operands, a multiple of 4, into the panels of a tile; each operand
// is xored with `flip`. Reads and writes whole panels: `rows` has pointers for all of their keys.
HWY_INLINE void PackTile(const uint8_t* const* rows, int panels, int operands, uint32_t flip,
                         uint32_t* tile) {
  const LaneU32 d;
  const auto mask = hn::Set(d, flip);
  for (int panel = 0; panel < panels; ++panel, tile += operands * kPanel) {
    for (int half = 0; half < kPanel; half += kLanes) {
      TransposeWords(rows + panel * kPanel + half, operands, [&](int operand, VecU32 x) HWY_ATTR {
        hn::Store(hn::Xor(x, mask), d, tile + half + operand * kPanel);
      });
    }
  }
}

#if RIFFLE_INT8_MATRICES
// PackTile for AddInt8Matrices: [panels][operands / 2][kPanel][2].
HWY_INLINE void PackInt8Matrices(const uint8_t* const* rows, int panels, int operands,
                                 uint32_t* tile) {
  const hn::Full128<uint64_t> d;
  for (int panel = 0; panel < panels; ++panel, rows += kPanel, tile += operands * kPanel) {
    auto* to = reinterpret_cast<uint64_t*>(tile);
    for (int operand = 0; operand < operands; operand += 4, to += 2 * kPanel) {
      for (int i = 0; i < kPanel; i += 2) {
        const auto a = hn::LoadU(d, reinterpret_cast<const uint64_t*>(rows[i] + 4 * operand));
        const auto b = hn::LoadU(d, reinterpret_cast<const uint64_t*>(rows[i + 1] + 4 * operand));
        hn::Store(hn::InterleaveLower(d, a, b), d, to + i);
        hn::Store(hn::InterleaveUpper(d, a, b), d, to + kPanel + i);
      }
    }
  }
}
#endif

#if HWY_TARGET <= HWY_AVX3_ZEN4 && HWY_ARCH_X86
#undef RIFFLE_SPARSE_E4M3_TABLES
#define RIFFLE_SPARSE_E4M3_TABLES 1
// The low and the high bytes of codes' values as bf16, without their sign.
struct E4M3Bytes {
  alignas(64) uint8_t low[128] = {};
  alignas(64) uint8_t high[128] = {};
  constexpr E4M3Bytes() {
    // m * 2^-9 for the subnormal codes m = 0..7.
    constexpr uint16_t kSubnormal[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
    for (int code = 0; code < 128; ++code) {
      const int bits = code == 127 ? 0x7fc0 : code < 8 ? kSubnormal[code] : (code << 4) + 0x3c00;
      low[code] = static_cast<uint8_t>(bits & 255);
      high[code] = static_cast<uint8_t>(bits >> 8);
    }
  }
};
inline constexpr E4M3Bytes kE4M3Bytes = {};

// e4m3 as bf16 by tables of 128: 6 operations for 64 elements, where arithmetic takes 30.
class E4M3Tables {
 public:
  using D = hn::CappedTag<uint8_t, 64>;
  using V = hn::Vec<D>;

  HWY_INLINE E4M3Tables()
      : low0_(hn::Load(D(), kE4M3Bytes.low)),
        low1_(hn::Load(D(), kE4M3Bytes.low + 64)),
        high0_(hn::Load(D(), kE4M3Bytes.high)),
        high1_(hn::Load(D(), kE4M3Bytes.high + 64)) {}

  // The low and the high bytes of codes.
  HWY_INLINE void Lookup(V codes, V& low, V& high) const {
    const D d;
    const auto sign = hn::Set(d, uint8_t{0x80});
    const auto index = hn::IndicesFromVec(d, hn::AndNot(sign, codes));
    low = hn::TwoTablesLookupLanes(d, low0_, low1_, index);
    high = hn::Or(hn::TwoTablesLookupLanes(d, high0_, high1_, index), hn::And(codes, sign));
  }

 private:
  V low0_, low1_, high0_, high1_;
};
#else
#undef RIFFLE_SPARSE_E4M3_TABLES
#define RIFFLE_SPARSE_E4M3_TABLES 0
#endif

// e4m3 as bf16, exact. NaN codes become NaN.
HWY_INLINE void E4M3ToBF16(const uint8_t* from, int count, uint16_t* to) {
#if RIFFLE_SPARSE_E4M3_TABLES
  const E4M3Tables tables;
  const E4M3Tables::D d;
  const hn::Repartition<uint16_t, decltype(d)> d16;
  for (int i = 0; i < count; i += 64) {
    E4M3Tables::V low, high;
    tables.Lookup(hn::LoadN(d, from + i, static_cast<size_t>(count - i)), low, high);
    const auto left = static_cast<size_t>(count - i);
    hn::StoreN(hn::BitCast(d16, hn::InterleaveWholeLower(d, low, high)), d16, to + i, left);
    if (left > 32) {
      hn::StoreN(hn::BitCast(d16, hn::InterleaveWholeUpper(d, low, high)), d16, to + i + 32,
                 left - 32);
    }
  }
#else
  float wide[kMaxIndexDim];
  RowToF32(DType::kE4M3, from, count, wide);
  ExactBF16(wide, count, to);
#endif
}

#if RIFFLE_SPARSE_E4M3_TABLES
// PackTile of rows of e4m3 codes as operands of two bf16: four codes of a key are transposed as one
// 32-bit word, then decoded to two operands. This halves the words to transpose and needs no rows
// of bf16: scores of one query over 131072 keys took 2.52 ms instead of 2.83 ms
// (docs/lab/sparse.md).
HWY_INLINE void PackE4M3Tile(const uint8_t* const* rows, int panels, int head_dim, uint32_t* tile) {
  const E4M3Tables tables;
  const E4M3Tables::D d8;
  const LaneU32 d;
  // The first two codes of each key of a 16-byte block, then the last two.
  alignas(16) static constexpr uint8_t kHalves[16] = {0, 1, 4, 5, 8,  9,  12, 13,
                                                      2, 3, 6, 7, 10, 11, 14, 15};
  const auto halves = hn::LoadDup128(d8, kHalves);
  const auto put = [&](VecU32 codes, uint32_t* to) HWY_ATTR {
    E4M3Tables::V low, high;
    tables.Lookup(hn::TableLookupBytes(hn::BitCast(d8, codes), halves), low, high);
    hn::Store(hn::BitCast(d, hn::InterleaveLower(d8, low, high)), d, to);
    hn::Store(hn::BitCast(d, hn::InterleaveUpper(d8, low, high)), d, to + kPanel);
  };
  const int operands = head_dim / 2;
  for (int panel = 0; panel < panels; ++panel, tile += operands * kPanel) {
    for (int half = 0; half < kPanel; half += kLanes) {
      TransposeWords(rows + panel * kPanel + half, head_dim / 4,
                     [&](int word, VecU32 codes)
                         HWY_ATTR { put(codes, tile + half + 2 * word * kPanel); });
    }
  }
}
#endif

// 2^(code - 127); 255 is NaN.
HWY_INLINE float FromE8M0(uint8_t code) {
  const uint32_t bits = code == 0     ? 0x00400000u
                        : code == 255 ? 0x7fc00000u
                                      : static_cast<uint32_t>(code) << 23;
  return std::bit_cast<float>(bits);
}

// 32 e2m1, two a byte, times 2^(scale - 127) as bf16: exact unless bf16 does not have the product.
HWY_INLINE void MxFp4ToBF16(const uint8_t* from, uint8_t scale, uint16_t* to) {
  alignas(16) static constexpr uint8_t kLow[16] = {0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0,
                                                   0, 0, 0x80, 0xc0, 0, 0x40, 0x80, 0xc0};
  alignas(16) static constexpr uint8_t kHigh[16] = {0,    0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                                    0x80, 0xbf, 0xbf, 0xbf, 0xc0, 0xc0, 0xc0, 0xc0};
  const hn::CappedTag<uint8_t, 16> d;
  const hn::Repartition<uint16_t, decltype(d)> d16;
  const auto bytes = hn::LoadU(d, from);
  const auto even = hn::And(bytes, hn::Set(d, uint8_t{15}));
  const auto odd = hn::And(hn::ShiftRight<4>(bytes), hn::Set(d, uint8_t{15}));
  // Where adding to exponents would leave their range, the loop below multiplies instead.
  const bool fits = scale >= 2 && scale <= 252;
  const auto shift = hn::Set(d16, static_cast<uint16_t>(fits ? (scale - 127) * 128 : 0));
  const auto put = [&](auto codes, uint16_t* at) HWY_ATTR {
    const auto low = hn::TableLookupBytes(hn::Load(d, kLow), codes);
    const auto high = hn::TableLookupBytes(hn::Load(d, kHigh), codes);
    const auto store = [&](auto x, uint16_t* half) HWY_ATTR {
      const auto zero = hn::Eq(hn::ShiftLeft<1>(x), hn::Zero(d16));
      hn::StoreU(hn::Add(x, hn::IfThenZeroElse(zero, shift)), d16, half);
    };
    store(hn::BitCast(d16, hn::InterleaveLower(d, low, high)), at);
    store(hn::BitCast(d16, hn::InterleaveUpper(d, low, high)), at + 8);
  };
  put(hn::InterleaveLower(d, even, odd), to);
  put(hn::InterleaveUpper(d, even, odd), to + 16);
  for (int i = 0; i < 32 && !fits; ++i) {
    const float code = std::bit_cast<float>(static_cast<uint32_t>(to[i]) << 16);
    to[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(code * FromE8M0(scale)) >> 16);
  }
}

// A row of MXFP4 as bf16 or f32 operands.
HWY_INLINE void MxFp4Operands(const IndexerArgs& args, const uint8_t* row, const float* scales,
                              uint32_t* to) {
  uint8_t codes[sizeof(float)];
  std::memcpy(codes, scales, sizeof(codes));
  alignas(64) uint16_t wide[kMaxIndexDim];
  uint16_t* bf16 = args.product == Product::kBF16 ? reinterpret_cast<uint16_t*>(to) : wide;
  for (int i = 0; i < args.head_dim; i += 32) {
    MxFp4ToBF16(row + i / 2, codes[i / 32], bf16 + i);
  }
  if (args.product == Product::kF32) {
    RowToF32(DType::kBF16, reinterpret_cast<const uint8_t*>(wide), args.head_dim,
             reinterpret_cast<float*>(to));
  }
}

// A key's row as operands of the product: in place if it has that form, else converted to `to`.
HWY_INLINE const uint8_t* KeyOperands(const IndexerArgs& args, const uint8_t* row,
                                      const float* scale, uint32_t* to) {
  if (args.mxfp4) {
    MxFp4Operands(args, row, scale, to);
    return reinterpret_cast<const uint8_t*>(to);
  }
  if (args.product == Product::kF32 && args.key_dtype != DType::kF32) {
    RowToF32(args.key_dtype, row, args.head_dim, reinterpret_cast<float*>(to));
    return reinterpret_cast<const uint8_t*>(to);
  }
  if (args.product == Product::kBF16 && args.key_dtype == DType::kE4M3) {
    E4M3ToBF16(row, args.head_dim, reinterpret_cast<uint16_t*>(to));
    return reinterpret_cast<const uint8_t*>(to);
  }
  return row;
}

// One head of a query as operands. *weight is multiplied by the scale of int8 codes; *start is what
// the sums of int8 products begin with, since keys are packed as code + Int8Dot::kBias.
HWY_INLINE void HeadOperands(const IndexerArgs& args, const uint8_t* head, uint32_t* operands,
                             float* weight, int32_t* start) {
  const int dim = args.head_dim;
  if (args.product == Product::kInt8) {
    auto* codes = reinterpret_cast<int8_t*>(operands);
    if (args.q_dtype == DType::kI8) {
      std::memcpy(codes, head, static_cast<size_t>(dim));
    } else {
      float x[kMaxIndexDim];
      RowToF32(args.q_dtype, head, dim, x);
      *weight *= QuantizeInt8(x, dim, codes);
    }
    int32_t sum = 0;
    for (int i = 0; i < dim; ++i) {
      sum += codes[i];
    }
    *start = -Int8Dot::kBias * sum;
    return;
  }
  if (args.product == Product::kF32) {
    RowToF32(args.q_dtype, head, dim, reinterpret_cast<float*>(operands));
  } else if (args.q_dtype == DType::kBF16) {
    std::memcpy(operands, head, static_cast<size_t>(dim) * 2);
  } else {
    float x[kMaxIndexDim];
    RowToF32(args.q_dtype, head, dim, x);
    ExactBF16(x, dim, reinterpret_cast<uint16_t*>(operands));
  }
  *start = 0;
}

// Where operand `operand` of head `h` of a group of heads is stored.
constexpr int HeadOperandAt(Product product, int operand, int h) {
  if (RIFFLE_INT8_MATRICES && product == Product::kInt8) {
    return (operand / 2 * kHeadGroup + h) * 2 + operand % 2;
  }
  return operand * kHeadGroup + h;
}

// Packs query `query` of an item into scratch.
HWY_INLINE void PackQuery(const IndexerArgs& args, int64_t token, int query,
                          const ScoreScratch& layout, uint8_t* scratch) {
  const int operands = args.operands();
  uint32_t* q = layout.q.At(scratch) + query * layout.query_operands;
  float* weights = layout.weights.At(scratch) + query * kMaxIndexHeads;
  int32_t* starts = layout.starts.At(scratch) + query * kMaxIndexHeads;
  for (int h = 0; h < args.heads; ++h) {
    alignas(64) uint32_t row[kMaxIndexDim];
    weights[h] = args.weights != nullptr ? args.weights[token * args.weight_stride + h] : 1.0f;
    HeadOperands(args, args.q + token * args.q_token_stride + h * args.q_head_stride, row,
                 weights + h, starts + h);
    uint32_t* group = q + h / kHeadGroup * operands * kHeadGroup;
    for (int operand = 0; operand < operands; ++operand) {
      group[HeadOperandAt(args.product, operand, h % kHeadGroup)] = row[operand];
    }
  }
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
