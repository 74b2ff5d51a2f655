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
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where a span of a tile lies, and where its words go.
struct TileSpan {
  const uint8_t* from;  // of the tile's first column and the span's first input
  int64_t stride;       // bytes from a column (transposed: an input) to the next
  int columns;          // 1..kTile; words of columns past them are of no meaning, but finite work
  int inputs;           // 1..kSpan
  int64_t ahead;        // bytes from what is read to what is prefetched
  void* words;          // [RoundUp(inputs, kChunk) / per word][kTile]
  float* scales;        // Q8_0: [inputs / kQ8Block][kTile]
  uint8_t* tails;       // [kTile][kChunk] elements
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

// Sources of words: kLanes words of a column, from word `word` of the span on. kPerWord inputs are a
// word.
template <DType kType>
struct FloatSource {
  static constexpr size_t kElement = SizeOf(kType);
  static HWY_INLINE WordVec Load(const uint8_t* column, int word) {
    return hn::BitCast(WordU32(), LoadF32<kType>(column + static_cast<size_t>(word) * kElement));
  }
};
struct FloatQ8Source {
  static HWY_INLINE WordVec Load(const uint8_t* column, int word) {
    const WordF32 df;
    const hn::RebindToSigned<WordF32> di;
    const hn::Rebind<int8_t, WordF32> d8;
    const uint8_t* block = column + word / kQ8Block * kQ8BlockBytes + 2;
    const auto bytes = hn::LoadU(d8, reinterpret_cast<const int8_t*>(block) + word % kQ8Block);
    return hn::BitCast(WordU32(), hn::ConvertTo(df, hn::PromoteTo(di, bytes)));
  }
};
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
struct PairSource {
  static HWY_INLINE WordVec Load(const uint8_t* column, int word) {
    return LoadAny(WordU32(), column + static_cast<size_t>(word) * 4);
  }
};
struct PairQ8Source {
  static HWY_INLINE WordVec Load(const uint8_t* column, int word) {
    // Integers up to 128 fill the upper half of an f32.
    const hn::Repartition<uint16_t, WordU32> du16;
    const auto low = FloatQ8Source::Load(column, 2 * word);
    const auto high = FloatQ8Source::Load(column, 2 * word + kLanes);
    return hn::BitCast(WordU32(), hn::ConcatOdd(du16, hn::BitCast(du16, high),
                                                hn::BitCast(du16, low)));
  }
};
#endif

// Words [begin, end) of columns whose inputs are contiguous; both are multiples of kLanes.
template <class Source>
HWY_INLINE void LayOutColumns(const uint8_t* const* columns, int begin, int end, uint32_t* words) {
  const WordU32 d;
  for (int column = 0; column < kTile; column += kLanes) {
    for (int word = begin; word < end; word += kLanes) {
      WordVec v[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        v[i] = Source::Load(columns[column + i], word);
      }
      TransposeWords(v);
      for (int i = 0; i < kLanes; ++i) {
        hn::Store(v[i], d, words + (word + i) * kTile + column);
      }
    }
  }
}

// Dense weights, contiguous along the inputs.
template <class Source, int kPerWord>
void LayOutRows(const TileSpan& tile, size_t element) {
  auto* words = static_cast<uint32_t*>(tile.words);
  const uint8_t* columns[kTile];
  for (int i = 0; i < kTile; ++i) {
    columns[i] = tile.from + std::min(i, tile.columns - 1) * tile.stride;
  }
  const int whole = tile.inputs / kChunk * kChunk;
  LayOutColumns<Source>(columns, 0, whole / kPerWord, words);
  if (whole == tile.inputs) {
    return;
  }
  for (int i = 0; i < kTile; ++i) {  // the rest of the inputs, and zeros
    uint8_t* tail = tile.tails + static_cast<size_t>(i) * kChunk * element;
    const size_t bytes = static_cast<size_t>(tile.inputs - whole) * element;
    std::memcpy(tail, columns[i] + static_cast<size_t>(whole) * element, bytes);
    std::memset(tail + bytes, 0, kChunk * element - bytes);
    columns[i] = tail;
  }
  LayOutColumns<Source>(columns, 0, kChunk / kPerWord, words + whole / kPerWord * kTile);
}

// Dense weights, contiguous along the columns. Whole tiles, or copies of what there is.
template <DType kType, int kPerWord>
void LayOutTransposed(const TileSpan& tile) {
  constexpr size_t kElement = SizeOf(kType);
  auto* words = static_cast<uint32_t*>(tile.words);
  const WordU32 d;
  const int padded = (tile.inputs + kChunk - 1) / kChunk * kChunk;
  uint8_t rows[kPerWord][kTile * kElement];
  for (int input = 0; input < padded; input += kPerWord, words += kTile) {
    const uint8_t* from[kPerWord];
    for (int i = 0; i < kPerWord; ++i) {
      from[i] = tile.from + (input + i) * tile.stride;
      if (tile.columns < kTile || input + i >= tile.inputs) {
        std::memset(rows[i], 0, sizeof(rows[i]));
        if (input + i < tile.inputs) {
          std::memcpy(rows[i], from[i], static_cast<size_t>(tile.columns) * kElement);
        }
        from[i] = rows[i];
      }
    }
    if constexpr (kPerWord == 1) {
      for (int column = 0; column < kTile; column += kLanes) {
        hn::Store(FloatSource<kType>::Load(from[0], column), d, words + column);
      }
    } else {
      const hn::Repartition<uint16_t, WordU32> dh;
      for (int column = 0; column < kTile; column += 2 * kLanes) {
        const auto even = LoadAny(dh, from[0] + 2 * column);
        const auto odd = LoadAny(dh, from[kPerWord - 1] + 2 * column);
        hn::Store(hn::BitCast(d, hn::InterleaveWholeLower(dh, even, odd)), d, words + column);
        hn::Store(hn::BitCast(d, hn::InterleaveWholeUpper(dh, even, odd)), d,
                  words + column + kLanes);
      }
    }
  }
}

template <class Source, int kPerWord>
void LayOutQ8(const TileSpan& tile) {
  const uint8_t* columns[kTile];
  const int blocks = tile.inputs / static_cast<int>(kQ8Block);
  for (int i = 0; i < kTile; ++i) {
    columns[i] = tile.from + std::min(i, tile.columns - 1) * tile.stride;
    for (int block = 0; block < blocks; ++block) {
      uint16_t scale;
      std::memcpy(&scale, columns[i] + block * kQ8BlockBytes, sizeof(scale));
      tile.scales[block * kTile + i] = ToFloat(scale, DType::kF16);
    }
  }
  LayOutColumns<Source>(columns, 0, tile.inputs / kPerWord, static_cast<uint32_t*>(tile.words));
}

template <DType kType>
void LayOutDense(FloatWords, const TileSpan& tile, bool transposed) {
  if (transposed) {
    LayOutTransposed<kType, 1>(tile);
  } else {
    LayOutRows<FloatSource<kType>, 1>(tile, SizeOf(kType));
  }
}

HWY_INLINE void LayOutTile(FloatWords words, const LinearArgs& args, const TileSpan& tile) {
  switch (args.format) {
    case WeightFormat::kF32:
      return LayOutDense<DType::kF32>(words, tile, args.transposed);
    case WeightFormat::kF16:
      return LayOutDense<DType::kF16>(words, tile, args.transposed);
    case WeightFormat::kBF16:
      return LayOutDense<DType::kBF16>(words, tile, args.transposed);
    case WeightFormat::kQ8_0:
      return LayOutQ8<FloatQ8Source, 1>(tile);
  }
}

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
HWY_INLINE void LayOutTile(PairWords, const LinearArgs& args, const TileSpan& tile) {
  if (args.format == WeightFormat::kQ8_0) {
    LayOutQ8<PairQ8Source, 2>(tile);
  } else if (args.transposed) {
    LayOutTransposed<DType::kBF16, 2>(tile);
  } else {
    LayOutRows<PairSource, 2>(tile, 2);
  }
}
#endif

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
