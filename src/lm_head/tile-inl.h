// A span of a tile of W as words [word][kTile], for the products to read along its columns.
// Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_TILE_INL_H_
#undef RIFFLE_LM_HEAD_TILE_INL_H_
#else
#define RIFFLE_LM_HEAD_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/load-inl.h"
#include "core/order.h"
#include "lm_head/words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::FromF16;
using core::HWY_NAMESPACE::LoadAny;
using core::HWY_NAMESPACE::PrefetchAt;

// A span of a tile of W: up to kTile columns of y, up to kSpan inputs.
struct TileSpan {
  // Columns whose inputs are contiguous; past the last one it is repeated. Not if transposed.
  const uint8_t* column[kTile];
  int64_t offset;        // of the span in a column, bytes
  int64_t column_bytes;  // of a whole column
  int64_t next_tile;     // bytes from a column to that of the next tile
  // Transposed: the first column and the span's first input; bytes from an input to the next.
  const uint8_t* from;
  int64_t stride;

  int columns;     // 1..kTile
  int inputs;      // 1..kSpan
  uint8_t* tails;  // scratch [kTile][kChunk] elements
  float* scales;   // scratch, Q8_0: [inputs / kQ8Block][kTile]

  // From a column to what is to be prefetched when byte `at` of the span is read: what lies
  // kAhead further on, and past the column's end the beginning of that of the next tile.
  static constexpr int64_t kAhead = 512;
  HWY_INLINE int64_t Prefetched(int64_t at) const {
    const int64_t ahead = offset + at + kAhead;
    return ahead < column_bytes ? ahead : ahead - column_bytes + next_tile;
  }
  int padded() const { return (inputs + kChunk - 1) / kChunk * kChunk; }
};

// kLanes vectors of kLanes words, rows to columns.
using WordU32 = hn::RebindToUnsigned<WordF32>;
using WordVec = hn::Vec<WordU32>;
HWY_INLINE void TransposeWords(WordVec (&v)[kLanes]) {
  const WordU32 d;
  for (int i = 0; i < kLanes; i += 4) {  // 4 x 4 in each 16-byte block
    const auto even_low = hn::InterleaveLower(d, v[i], v[i + 2]);
    const auto even_high = hn::InterleaveUpper(d, v[i], v[i + 2]);
    const auto odd_low = hn::InterleaveLower(d, v[i + 1], v[i + 3]);
    const auto odd_high = hn::InterleaveUpper(d, v[i + 1], v[i + 3]);
    v[i] = hn::InterleaveLower(d, even_low, odd_low);
    v[i + 1] = hn::InterleaveUpper(d, even_low, odd_low);
    v[i + 2] = hn::InterleaveLower(d, even_high, odd_high);
    v[i + 3] = hn::InterleaveUpper(d, even_high, odd_high);
  }
  if constexpr (kLanes == 8) {  // then the blocks
    for (int i = 0; i < 4; ++i) {
      const auto low = v[i];
      v[i] = hn::ConcatLowerLower(d, v[i + 4], low);
      v[i + 4] = hn::ConcatUpperUpper(d, v[i + 4], low);
    }
  } else if constexpr (kLanes == 16) {
    alignas(64) static constexpr uint32_t kEven[16] = {0,  1,  2,  3,  8,  9,  10, 11,
                                                       16, 17, 18, 19, 24, 25, 26, 27};
    alignas(64) static constexpr uint32_t kOdd[16] = {4,  5,  6,  7,  12, 13, 14, 15,
                                                      20, 21, 22, 23, 28, 29, 30, 31};
    const auto even = hn::SetTableIndices(d, kEven);
    const auto odd = hn::SetTableIndices(d, kOdd);
    for (int i = 0; i < 4; ++i) {
      const auto a = hn::ConcatLowerLower(d, v[i + 4], v[i]);
      const auto b = hn::ConcatLowerLower(d, v[i + 12], v[i + 8]);
      const auto c = hn::ConcatUpperUpper(d, v[i + 4], v[i]);
      const auto e = hn::ConcatUpperUpper(d, v[i + 12], v[i + 8]);
      v[i] = hn::TwoTablesLookupLanes(d, a, b, even);
      v[i + 4] = hn::TwoTablesLookupLanes(d, a, b, odd);
      v[i + 8] = hn::TwoTablesLookupLanes(d, c, e, even);
      v[i + 12] = hn::TwoTablesLookupLanes(d, c, e, odd);
    }
  }
}

// Sources of words: Load makes kLanes words of a column of what lies at Offset(word). kPerLine:
// words made of one cache line (Q8_0: of one block), which is prefetched once.
template <DType kElementType>
struct FloatSource {
  static constexpr DType kType = kElementType;
  static constexpr bool kQ8 = false;
  static constexpr size_t kElement = SizeOf(kType);
  static constexpr int kPerLine = 64 / kElement;
  static HWY_INLINE int64_t Offset(int word) { return word * static_cast<int64_t>(kElement); }
  static HWY_INLINE WordVec Load(const uint8_t* from) {
    return hn::BitCast(WordU32(), LoadF32<kType>(from));
  }
};
struct FloatQ8Source {
  static constexpr bool kQ8 = true;
  static constexpr size_t kElement = 1;
  static constexpr int kPerLine = static_cast<int>(kQ8Block);
  static HWY_INLINE int64_t Offset(int word) {
    return word / kQ8Block * kQ8BlockBytes + 2 + word % kQ8Block;
  }
  static HWY_INLINE WordVec Load(const uint8_t* from) {
    const WordF32 df;
    const hn::RebindToSigned<WordF32> di;
    const hn::Rebind<int8_t, WordF32> d8;
    const auto bytes = hn::LoadU(d8, reinterpret_cast<const int8_t*>(from));
    return hn::BitCast(WordU32(), hn::ConvertTo(df, hn::PromoteTo(di, bytes)));
  }
};
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
struct PairSource {
  static constexpr DType kType = DType::kBF16;
  static constexpr bool kQ8 = false;
  static constexpr size_t kElement = 2;
  static constexpr int kPerLine = 16;
  static HWY_INLINE int64_t Offset(int word) { return 4 * word; }
  static HWY_INLINE WordVec Load(const uint8_t* from) { return LoadAny(WordU32(), from); }
};
struct PairQ8Source {
  static constexpr bool kQ8 = true;
  static constexpr size_t kElement = 1;
  static constexpr int kPerLine = static_cast<int>(kQ8Block) / 2;
  static HWY_INLINE int64_t Offset(int word) { return FloatQ8Source::Offset(2 * word); }
  static HWY_INLINE WordVec Load(const uint8_t* from) {
    // Integers up to 128 fill the upper half of an f32.
    const hn::Repartition<uint16_t, WordU32> du16;
    const auto low = FloatQ8Source::Load(from);
    const auto high = FloatQ8Source::Load(from + kLanes);
    return hn::BitCast(WordU32(),
                       hn::ConcatOdd(du16, hn::BitCast(du16, high), hn::BitCast(du16, low)));
  }
};
#endif

// A step lays out kLanes vectors of words: kWords words of kGroups groups of kLanes columns.
template <class Source>
struct Step {
  static constexpr int kGroups = 1;
  static constexpr int kWords = kLanes;

  // v[i] = word `word` + i of the columns from `column` on.
  template <bool kPrefetch>
  static HWY_INLINE void Load(const TileSpan& tile, int column, int word, WordVec (&v)[kLanes]) {
    const int64_t offset = Source::Offset(word);
    const int64_t ahead = tile.Prefetched(offset);
    for (int i = 0; i < kLanes; ++i) {
      if (kPrefetch && word % Source::kPerLine == 0) {
        PrefetchAt(tile.column[column + i], ahead);
      }
      v[i] = Source::Load(tile.column[column + i] + tile.offset + offset);
    }
    TransposeWords(v);
  }
};

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
// Q8_0 to pairs of bf16 by bytes: half a block of 32 columns at a time is transposed before it is
// widened, and widened by tables of 128 bytes. Half the instructions of the general way.
template <>
struct Step<PairQ8Source> {
  static constexpr int kGroups = 2;
  static constexpr int kWords = kLanes / 2;
  using D8 = hn::CappedTag<uint8_t, 64>;
  using V8 = hn::Vec<D8>;

  // The lower or upper bytes of the bf16 of 0..127 and of -128..-1.
  struct Tables {
    alignas(64) uint8_t low[128];  // by magnitude; that of 128 is that of 0
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

  // 16 bytes of four columns, a 16-byte block each.
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

  // v[8 g + i] = word `word` + i of columns `column` + 16 g + 0..15.
  template <bool kPrefetch>
  static HWY_INLINE void Load(const TileSpan& tile, int column, int word, WordVec (&v)[kLanes]) {
    static constexpr Tables kTables;
    const D8 d;
    const hn::Repartition<int8_t, D8> di;
    const uint8_t* const* columns = tile.column + column;
    const int64_t offset = PairQ8Source::Offset(word);
    const int64_t ahead = tile.Prefetched(offset);
    // In 16-byte block b of rows[i]: column 4 b + i; from rows[4] on, of the second group. Each
    // block is a matrix of 8 x 8 pairs of bytes, whose transposition brings a pair of all columns
    // together.
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
      v[i] = hn::BitCast(WordU32(), hn::InterleaveLower(d, low, high));
      v[i + 8] = hn::BitCast(WordU32(), hn::InterleaveUpper(d, low, high));
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

// Words of W lie by panels of columns: [kTile / kPanel][words][kPanel].
constexpr int kPanel = 2 * kLanes;

// Words [0, words) of columns whose inputs are contiguous; `words` is a multiple of kLanes.
template <class Source>
void LayOutColumns(const TileSpan& tile, int words, int panel_words, uint32_t* out) {
  const WordU32 d;
  using S = Step<Source>;
  for (int column = 0; column < kTile; column += S::kGroups * kLanes) {
    uint32_t* panel = out + column / kPanel * kPanel * panel_words + column % kPanel;
    for (int word = 0; word < words; word += S::kWords) {
      WordVec v[kLanes];
      S::template Load</*kPrefetch=*/false>(tile, column, word, v);
      for (int i = 0; i < kLanes; ++i) {
        hn::Store(v[i], d, panel + (word + i % S::kWords) * kPanel + i / S::kWords * kLanes);
      }
    }
  }
}

// The inputs past the last whole chunk of a span, and zeros: a span of its own in tile.tails.
template <size_t kElement>
HWY_INLINE TileSpan TailOf(const TileSpan& tile) {
  TileSpan tail = tile;
  const int whole = tile.inputs / kChunk * kChunk;
  const auto bytes = static_cast<size_t>(tile.inputs - whole) * kElement;
  for (int i = 0; i < kTile; ++i) {
    uint8_t* copy = tile.tails + static_cast<size_t>(i) * kChunk * kElement;
    const size_t from = static_cast<size_t>(whole) * kElement;
    std::memcpy(copy, tile.column[i] + tile.offset + from, bytes);
    std::memset(copy + bytes, 0, kChunk * kElement - bytes);
    tail.column[i] = copy;
  }
  tail.offset = 0;
  tail.inputs = kChunk;
  return tail;
}

template <class Source, int kPerOperand>
void LayOutRows(const TileSpan& tile, uint32_t* words) {
  const int panel_words = tile.padded() / kPerOperand;
  const int whole = tile.inputs / kChunk * (kChunk / kPerOperand);
  LayOutColumns<Source>(tile, whole, panel_words, words);
  if constexpr (!Source::kQ8) {
    if (tile.inputs % kChunk != 0) {
      LayOutColumns<Source>(TailOf<Source::kElement>(tile), kChunk / kPerOperand, panel_words,
                            words + whole * kPanel);
    }
  }
}

// Weights contiguous along the columns: kPerOperand inputs, all columns of a tile.
template <DType kType, int kPerOperand>
HWY_INLINE void LayOutInputs(const uint8_t* const* from, int panel_words, uint32_t* words) {
  const WordU32 d;
  if constexpr (kPerOperand == 1) {
    for (int column = 0; column < kTile; column += kLanes) {
      uint32_t* to = words + column / kPanel * kPanel * panel_words + column % kPanel;
      hn::Store(FloatSource<kType>::Load(from[0] + static_cast<size_t>(column) * SizeOf(kType)), d,
                to);
    }
  } else {
    const hn::Repartition<uint16_t, WordU32> dh;
    for (int column = 0; column < kTile; column += kPanel) {
      const auto even = LoadAny(dh, from[0] + 2 * column);
      const auto odd = LoadAny(dh, from[kPerOperand - 1] + 2 * column);
      uint32_t* to = words + column * panel_words;
      hn::Store(hn::BitCast(d, hn::InterleaveWholeLower(dh, even, odd)), d, to);
      hn::Store(hn::BitCast(d, hn::InterleaveWholeUpper(dh, even, odd)), d, to + kLanes);
    }
  }
}

template <DType kType, int kPerOperand>
void LayOutTransposed(const TileSpan& tile, uint32_t* words) {
  constexpr size_t kElement = SizeOf(kType);
  constexpr int kInputsAhead = 32;
  const int padded = tile.padded();
  uint8_t copies[kPerOperand][kTile * kElement];
  for (int input = 0; input < padded; input += kPerOperand, words += kPanel) {
    const uint8_t* from[kPerOperand];
    for (int i = 0; i < kPerOperand; ++i) {
      from[i] = copies[i];
      if (input + i >= tile.inputs) {
        std::memset(copies[i], 0, sizeof(copies[i]));
      } else if (tile.columns < kTile) {
        std::memset(copies[i], 0, sizeof(copies[i]));
        std::memcpy(copies[i], tile.from + (input + i) * tile.stride,
                    static_cast<size_t>(tile.columns) * kElement);
      } else {
        from[i] = tile.from + (input + i) * tile.stride;
        for (size_t line = 0; line < kTile * kElement; line += 64) {
          PrefetchAt(from[i] + line, kInputsAhead * tile.stride);
        }
      }
    }
    LayOutInputs<kType, kPerOperand>(from, padded / kPerOperand, words);
  }
}

// The scales of Q8_0's blocks as f32.
HWY_INLINE void LoadScales(const TileSpan& tile) {
  const WordF32 df;
  const hn::Rebind<hwy::float16_t, WordF32> dh;
  constexpr int kBlocks = kSpan / static_cast<int>(kQ8Block);
  alignas(64) uint16_t bits[kBlocks][kTile];
  const int blocks = tile.inputs / static_cast<int>(kQ8Block);
  for (int i = 0; i < kTile; ++i) {
    const uint8_t* column = tile.column[i] + tile.offset;
    for (int block = 0; block < blocks; ++block) {
      std::memcpy(&bits[block][i], column + block * kQ8BlockBytes, sizeof(bits[0][0]));
    }
  }
  for (int block = 0; block < blocks; ++block) {
    for (int i = 0; i < kTile; i += kLanes) {
      const auto* half = reinterpret_cast<const uint8_t*>(&bits[block][i]);
      hn::Store(FromF16(df, LoadAny(dh, half)), df, tile.scales + block * kTile + i);
    }
  }
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
