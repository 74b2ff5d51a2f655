// Scores of the few rows of a decode by dot products of bf16, 16 keys in the lanes of a vector: a
// step multiplies an operand of 16 keys by the operand of a row of q, which the instruction
// broadcasts from memory. Codes of 8 and 4 bits are transposed first and decoded in registers
// afterwards. Every score is the chain of dot-inl.h, so the bits are those of prefill. Included
// once per SIMD target.
#if defined(RIFFLE_ATTENTION_KEY_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_KEY_LANES_INL_H_
#undef RIFFLE_ATTENTION_KEY_LANES_INL_H_
#else
#define RIFFLE_ATTENTION_KEY_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

#include "attention/decode_bf16-inl.h"
#include "attention/dot-inl.h"
#include "attention/kv_rows.h"
#include "core/load-inl.h"

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86 && HWY_CAP_GE512

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::LoadAny;

// Lane 4 b + i of a vector belongs to key 4 i + b: the transpositions below stay within blocks of
// 128 bits, and scores of four rows leave them in the order of the keys.
using Keys16 = hn::CappedTag<uint32_t, 16>;

// Of 16 keys four vectors, of which block b of vector i has 16 bytes of key 4 i + b.
struct KeyBlocks {
  hn::Vec<Bytes64> of[4];
};

// volatile forces a reload: otherwise the compiler hoists 16 pointers and spills them.
HWY_INLINE const uint8_t* RowAt(const uint8_t* const* rows, int key) {
  return *const_cast<const uint8_t* const volatile*>(rows + key);
}

// 32 bytes of each key: first[0, 16) and second[16, 32).
HWY_INLINE void Load32Bytes(const uint8_t* const* rows, int64_t offset, KeyBlocks* first,
                            KeyBlocks* second) {
  const Bytes64 d;
  const hn::Half<Bytes64> half;
  const auto two = [&](int key) HWY_ATTR {
    return hn::Combine(d, hn::LoadU(half, RowAt(rows, key + 1) + offset),
                       hn::LoadU(half, RowAt(rows, key) + offset));
  };
  for (int i = 0; i < 4; ++i) {
    const auto low = two(4 * i);
    const auto high = two(4 * i + 2);
    first->of[i] = hn::Vec<Bytes64>{_mm512_shuffle_i64x2(low.raw, high.raw, 0x88)};
    second->of[i] = hn::Vec<Bytes64>{_mm512_shuffle_i64x2(low.raw, high.raw, 0xdd)};
  }
}

// 16 bytes of each key.
HWY_INLINE KeyBlocks Load16Bytes(const uint8_t* const* rows, int64_t offset) {
  const Bytes64 d;
  const hn::Half<Bytes64> half;
  const hn::Half<decltype(half)> quarter;
  const auto one = [&](int key) HWY_ATTR { return hn::LoadU(quarter, RowAt(rows, key) + offset); };
  KeyBlocks blocks;
  for (int i = 0; i < 4; ++i) {
    const auto low = hn::Combine(half, one(4 * i + 1), one(4 * i));
    const auto high = hn::Combine(half, one(4 * i + 3), one(4 * i + 2));
    blocks.of[i] = hn::Combine(d, high, low);
  }
  return blocks;
}

// The four operands of bf16 in 16 bytes of each key, transposed: to[w] is aligned.
HWY_INLINE void StoreOperandsOf16Bytes(const KeyBlocks& blocks, uint32_t* HWY_RESTRICT to) {
  const Keys16 d;
  const hn::Repartition<uint64_t, Keys16> d64;
  const auto operands = [&](int i) HWY_ATTR { return hn::BitCast(d, blocks.of[i]); };
  const auto twice = [&](auto x) HWY_ATTR { return hn::BitCast(d64, x); };
  const auto low01 = twice(hn::InterleaveLower(d, operands(0), operands(1)));
  const auto low23 = twice(hn::InterleaveLower(d, operands(2), operands(3)));
  hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), d, to);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), d, to + 16);
  const auto high01 = twice(hn::InterleaveUpper(d, operands(0), operands(1)));
  const auto high23 = twice(hn::InterleaveUpper(d, operands(2), operands(3)));
  hn::Store(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), d, to + 32);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), d, to + 48);
}

// Transposes 16 codes of 8 bits of each key, pairs as they are: vector j has pair 2 j of all keys
// in the lower halves of blocks, pair 2 j + 1 in the upper ones.
HWY_INLINE KeyBlocks TransposedPairs(const KeyBlocks& blocks) {
  const hn::Repartition<uint16_t, Bytes64> d16;
  const hn::Repartition<uint32_t, Bytes64> d32;
  const Bytes64 d;
  const auto pairs = [&](int i) HWY_ATTR { return hn::BitCast(d16, blocks.of[i]); };
  const auto twice = [&](auto x) HWY_ATTR { return hn::BitCast(d32, x); };
  const auto low01 = twice(hn::InterleaveLower(d16, pairs(0), pairs(1)));
  const auto low23 = twice(hn::InterleaveLower(d16, pairs(2), pairs(3)));
  const auto high01 = twice(hn::InterleaveUpper(d16, pairs(0), pairs(1)));
  const auto high23 = twice(hn::InterleaveUpper(d16, pairs(2), pairs(3)));
  return {{hn::BitCast(d, hn::InterleaveLower(d32, low01, low23)),
           hn::BitCast(d, hn::InterleaveUpper(d32, low01, low23)),
           hn::BitCast(d, hn::InterleaveLower(d32, high01, high23)),
           hn::BitCast(d, hn::InterleaveUpper(d32, high01, high23))}};
}
HWY_INLINE void StorePairs(const KeyBlocks& blocks, uint8_t* HWY_RESTRICT to) {
  const KeyBlocks pairs = TransposedPairs(blocks);
  for (int i = 0; i < 4; ++i) {
    hn::Store(pairs.of[i], Bytes64(), to + 64 * i);
  }
}

// Two neighbouring operands of 16 keys.
struct TwoOperands {
  hn::Vec<Keys16> of[2];
};

// Of two transposed pairs.
template <class Decoder>
HWY_INLINE TwoOperands Decoded(const Decoder& decode, hn::Vec<Bytes64> codes) {
  const Bytes64 d;
  const Keys16 d32;
  const BF16Bytes bytes = decode(codes);
  return {{hn::BitCast(d32, hn::InterleaveLower(d, bytes.low, bytes.high)),
           hn::BitCast(d32, hn::InterleaveUpper(d, bytes.low, bytes.high))}};
}

// How keys of a code pass through a kernel in steps: kStepBytes of a row are kStepOperands
// operands. Transpose stores the codes of a step of 16 keys to kVectors vectors, from which
// Operands decodes the operands 2 i and 2 i + 1.
template <RowCode kCode>
struct KeySteps {  // codes of 8 bits
  static constexpr int kStepBytes = 32;
  static constexpr int kStepOperands = 16;
  static constexpr int kVectors = 8;
  const ByteDecoder<kCode> decode;

  HWY_INLINE KeySteps() {}

  HWY_INLINE void Transpose(const uint8_t* const* rows, int step, uint8_t* codes) const {
    TransposeAt(rows, int64_t{step} * kStepBytes, codes);
  }
  static HWY_INLINE void TransposeAt(const uint8_t* const* rows, int64_t offset, uint8_t* codes) {
    KeyBlocks first;
    KeyBlocks second;
    Load32Bytes(rows, offset, &first, &second);
    StorePairs(first, codes);
    StorePairs(second, codes + 256);
  }
  HWY_INLINE TwoOperands Operands(const uint8_t* codes, int i) const {
    return Decoded(decode, hn::Load(Bytes64(), codes + 64 * i));
  }
};

template <>
struct KeySteps<RowCode::kBF16> {
  static constexpr int kStepBytes = 32;
  static constexpr int kStepOperands = 8;
  static constexpr int kVectors = 8;

  HWY_INLINE KeySteps() {}

  HWY_INLINE void Transpose(const uint8_t* const* rows, int step, uint8_t* codes) const {
    KeyBlocks first;
    KeyBlocks second;
    Load32Bytes(rows, int64_t{step} * kStepBytes, &first, &second);
    auto* to = reinterpret_cast<uint32_t*>(codes);
    StoreOperandsOf16Bytes(first, to);
    StoreOperandsOf16Bytes(second, to + 64);
  }
  HWY_INLINE TwoOperands Operands(const uint8_t* codes, int i) const {
    const Keys16 d;
    const auto* from = reinterpret_cast<const uint32_t*>(codes) + 32 * i;
    return {{hn::Load(d, from), hn::Load(d, from + 16)}};
  }
};

template <>
struct KeySteps<RowCode::kQ8_0> {
  static constexpr int kStepBytes = static_cast<int>(BlockBytes(KvFormat::kQ8_0));
  static constexpr int kStepOperands = kBlockElements / 2;
  static constexpr int kVectors = 8;
  const KeySteps<RowCode::kI8> steps;

  HWY_INLINE KeySteps() {}

  HWY_INLINE void Transpose(const uint8_t* const* rows, int step, uint8_t* codes) const {
    steps.TransposeAt(rows, int64_t{step} * kStepBytes + kBlockHeader<RowCode::kQ8_0>, codes);
  }
  HWY_INLINE TwoOperands Operands(const uint8_t* codes, int i) const {
    return steps.Operands(codes, i);
  }
};

// Codes of 4 bits: byte i of a block has elements i and 16 + i.
template <RowCode kCode>
struct NibbleKeySteps {
  static constexpr int kStepBytes = static_cast<int>(BlockBytes(KvFormat::kQ4_0));
  static constexpr int kStepOperands = kBlockElements / 2;
  static constexpr int kVectors = 8;
  const NibbleDecoder<kCode> decode;

  HWY_INLINE NibbleKeySteps() {}

  HWY_INLINE void Transpose(const uint8_t* const* rows, int step, uint8_t* codes) const {
    const Bytes64 d;
    const hn::Repartition<uint16_t, Bytes64> d16;
    const auto nibble = hn::Set(d, 15);
    const KeyBlocks pairs =
        TransposedPairs(Load16Bytes(rows, int64_t{step} * kStepBytes + kBlockHeader<kCode>));
    for (int i = 0; i < 4; ++i) {
      const auto upper = hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, pairs.of[i])));
      hn::Store(hn::And(pairs.of[i], nibble), d, codes + 64 * i);
      hn::Store(hn::And(upper, nibble), d, codes + 256 + 64 * i);
    }
  }
  HWY_INLINE TwoOperands Operands(const uint8_t* codes, int i) const {
    return Decoded(decode, hn::Load(Bytes64(), codes + 64 * i));
  }
};
template <>
struct KeySteps<RowCode::kQ4_0> : NibbleKeySteps<RowCode::kQ4_0> {
  HWY_INLINE KeySteps() {}
};
template <>
struct KeySteps<RowCode::kIQ4NL> : NibbleKeySteps<RowCode::kIQ4NL> {
  HWY_INLINE KeySteps() {}
};

// Rows of keys, what of them is multiplied, and rows to prefetch meanwhile.
struct LaneKeys {
  const uint8_t* const* rows;  // [sets of 16 keys]
  int begin_step;              // steps [begin_step, end_step) of KeySteps
  int end_step;
  // Block formats of more than one block: scale g of the keys is at scales + g * kBlock. Else null.
  const float* scales;
  const uint8_t* const* ahead;  // as many as rows
  int ahead_lines;              // of 64 bytes, of each of them

  int Steps() const { return end_step - begin_step; }
};

// Rows that are prefetched while others are multiplied: all lines of a few rows in every few
// products. (The first line of all rows before their second ones: decode over Q8_0 took a tenth
// longer. Each row's pointer once for each of its lines: the kernels are bound by loads.)
class RowPrefetch {
 public:
  // `count` rows of `lines` lines of 64 bytes; Some is called `times` times.
  HWY_INLINE RowPrefetch(const uint8_t* const* rows, int count, int lines, int times)
      : next_(rows),
        end_(rows + count),
        lines_(lines),
        at_once_((count + times - 1) / times),
        every_(HWY_MAX(1, times / count)) {}

  HWY_INLINE void Some() {
    if (--wait_ > 0) {
      return;
    }
    wait_ = every_;
    for (int i = 0; i < at_once_ && next_ != end_; ++i, ++next_) {
      const uint8_t* row = *next_;
      for (int line = 0; line < lines_; ++line) {
        PrefetchAt(row, line * 64);
      }
    }
  }

 private:
  const uint8_t* const* next_;
  const uint8_t* const* const end_;
  const int lines_;
  const int at_once_;
  const int every_;  // calls
  int wait_ = 1;
};

// scores[key][row] of 16 keys = sum[row], lanes as above.
template <int kRows>
HWY_INLINE void StoreLanes(const hn::Vec<FloatTag<16>>* sum, float* HWY_RESTRICT scores) {
  const FloatTag<16> df;
  const hn::Repartition<double, decltype(df)> dd;
  const FloatTag<4> d4;
  const auto twice = [&](auto x) HWY_ATTR { return hn::BitCast(dd, x); };
  for (int row = 0; row < kRows; row += 4) {
    const auto low01 = twice(hn::InterleaveLower(df, sum[row], sum[row + 1]));
    const auto low23 = twice(hn::InterleaveLower(df, sum[row + 2], sum[row + 3]));
    const auto high01 = twice(hn::InterleaveUpper(df, sum[row], sum[row + 1]));
    const auto high23 = twice(hn::InterleaveUpper(df, sum[row + 2], sum[row + 3]));
    const hn::Vec<FloatTag<16>> four_keys[] = {
        hn::BitCast(df, hn::InterleaveLower(dd, low01, low23)),
        hn::BitCast(df, hn::InterleaveUpper(dd, low01, low23)),
        hn::BitCast(df, hn::InterleaveLower(dd, high01, high23)),
        hn::BitCast(df, hn::InterleaveUpper(dd, high01, high23))};
    for (int i = 0; i < 4; ++i) {
      float* to = scores + 4 * i * kRows + row;
      if constexpr (kRows == 4) {
        hn::Store(four_keys[i], df, to);
      } else {
        hn::Store(hn::ExtractBlock<0>(four_keys[i]), d4, to);
        hn::Store(hn::ExtractBlock<1>(four_keys[i]), d4, to + kRows);
        hn::Store(hn::ExtractBlock<2>(four_keys[i]), d4, to + 2 * kRows);
        hn::Store(hn::ExtractBlock<3>(four_keys[i]), d4, to + 3 * kRows);
      }
    }
  }
}

// The scales of 16 keys in the lanes above.
HWY_INLINE hn::Vec<FloatTag<16>> LaneScales(const float* scales) {
  const FloatTag<16> df;
  alignas(64) static constexpr int32_t kKeys[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                    2, 6, 10, 14, 3, 7, 11, 15};
  return hn::TableLookupLanes(hn::Load(df, scales), hn::SetTableIndices(df, kKeys));
}

// Sums of kSets sets of 16 keys and kRows rows.
template <int kRows, int kSets>
struct LaneSums {
  hn::Vec<FloatTag<16>> of[kSets][kRows];

  HWY_INLINE LaneSums() {
    for (auto& set : of) {
      for (auto& sum : set) {
        sum = hn::Zero(FloatTag<16>());
      }
    }
  }

  // Adds the products of a step's operands.
  //   q      [operands of the step][kRows]
  //   codes  [kSets][64 * kVectors], as Transpose stores them
  template <class Steps>
  HWY_INLINE void AddStep(const Steps& steps, const uint32_t* HWY_RESTRICT q,
                          const uint8_t* HWY_RESTRICT codes, RowPrefetch& prefetch) {
    const FloatTag<16> df;
#pragma GCC unroll 1
    for (int i = 0; i < Steps::kStepOperands / 2; ++i, q += 2 * kRows) {
      prefetch.Some();
      TwoOperands x[kSets];
      for (int set = 0; set < kSets; ++set) {
        x[set] = steps.Operands(codes + set * 64 * Steps::kVectors, i);
      }
      for (int j = 0; j < 2; ++j) {
        for (int row = 0; row < kRows; ++row) {
          for (int set = 0; set < kSets; ++set) {
            of[set][row] = BF16Math::Step(df, q[j * kRows + row], x[set].of[j], of[set][row]);
          }
        }
      }
    }
  }

  HWY_INLINE void Store(float* HWY_RESTRICT scores) const {
    for (int set = 0; set < kSets; ++set) {
      StoreLanes<kRows>(of[set], scores + 16 * set * kRows);
    }
  }
};

// Transposes a step of kSets times 16 keys.
template <class Steps, int kSets>
HWY_INLINE void TransposeStep(const Steps& steps, const LaneKeys& keys, int step,
                              uint8_t* HWY_RESTRICT codes) {
  for (int set = 0; set < kSets; ++set) {
    steps.Transpose(keys.rows + 16 * set, step, codes + set * 64 * Steps::kVectors);
  }
}

// Scores of kSets times 16 keys against kRows rows.
//   q  [operands][kRows]; scores [keys][kRows], aligned
template <RowCode kCode, int kRows, int kSets>
HWY_INLINE void LaneScores(const uint32_t* HWY_RESTRICT q, const LaneKeys& keys,
                           float* HWY_RESTRICT scores) {
  using Steps = KeySteps<kCode>;
  constexpr int kStepWords = Steps::kStepOperands * kRows;
  const Steps steps;
  alignas(64) uint8_t codes[kSets * 64 * Steps::kVectors];
  LaneSums<kRows, kSets> sums;
  RowPrefetch prefetch(keys.ahead, 16 * kSets, keys.ahead_lines,
                       keys.Steps() * Steps::kStepOperands / 2);
  for (int step = keys.begin_step; step < keys.end_step; ++step) {
    TransposeStep<Steps, kSets>(steps, keys, step, codes);
    sums.AddStep(steps, q + step * kStepWords, codes, prefetch);
  }
  sums.Store(scores);
}

// LaneScores where each step is a block with scales of its own.
template <RowCode kCode, int kRows, int kSets>
HWY_INLINE void ScaledLaneScores(const uint32_t* HWY_RESTRICT q, const LaneKeys& keys,
                                 float* HWY_RESTRICT scores) {
  using Steps = KeySteps<kCode>;
  constexpr int kStepWords = Steps::kStepOperands * kRows;
  const FloatTag<16> df;
  const Steps steps;
  alignas(64) uint8_t codes[kSets * 64 * Steps::kVectors];
  alignas(64) float total[kSets][kRows][16] = {};
  RowPrefetch prefetch(keys.ahead, 16 * kSets, keys.ahead_lines,
                       keys.Steps() * Steps::kStepOperands / 2);
  for (int step = keys.begin_step; step < keys.end_step; ++step) {
    TransposeStep<Steps, kSets>(steps, keys, step, codes);
    LaneSums<kRows, kSets> sums;
    sums.AddStep(steps, q + step * kStepWords, codes, prefetch);
    for (int set = 0; set < kSets; ++set) {
      const auto scale = LaneScales(keys.scales + step * kBlock + 16 * set);
      for (int row = 0; row < kRows; ++row) {
        float* at = total[set][row];
        hn::Store(hn::MulAdd(sums.of[set][row], scale, hn::Load(df, at)), df, at);
      }
    }
  }
  LaneSums<kRows, kSets> sums;
  for (int set = 0; set < kSets; ++set) {
    for (int row = 0; row < kRows; ++row) {
      sums.of[set][row] = hn::Load(df, total[set][row]);
    }
  }
  sums.Store(scores);
}

template <RowCode kCode, int kRows, int kSets>
HWY_INLINE void LaneScoresOf(const uint32_t* q, const LaneKeys& keys, float* scores) {
  if constexpr (IsBlocks(kCode)) {
    if (keys.scales != nullptr) {
      return ScaledLaneScores<kCode, kRows, kSets>(q, keys, scores);
    }
  }
  LaneScores<kCode, kRows, kSets>(q, keys, scores);
}

// Of `sets` sets of 16 keys, up to four.
template <RowCode kCode>
void LaneScoresOfSets(const uint32_t* q, int lanes, LaneKeys keys, int sets, float* scores) {
  if (lanes == 4 && sets == 4) {
    return LaneScoresOf<kCode, 4, 4>(q, keys, scores);
  }
  if (lanes == 4 && sets == 2) {
    return LaneScoresOf<kCode, 4, 2>(q, keys, scores);
  }
  for (int set = 0; set < sets; ++set) {
    if (lanes == 4) {
      LaneScoresOf<kCode, 4, 1>(q, keys, scores);
    } else if (lanes == 8) {
      LaneScoresOf<kCode, 8, 1>(q, keys, scores);
    } else {
      LaneScoresOf<kCode, 16, 1>(q, keys, scores);
    }
    keys.rows += kGroupKeys;
    keys.ahead += kGroupKeys;
    keys.scales += keys.scales != nullptr ? kGroupKeys : 0;
    scores += kGroupKeys * lanes;
  }
}

using LaneScoresKernel = void (*)(const uint32_t* q, int lanes, LaneKeys keys, int sets,
                                  float* scores);
struct LaneKernel {
  LaneScoresKernel run = nullptr;
  int step_operands = 0;
};
template <RowCode kCode>
constexpr LaneKernel LaneKernelOf() {
  return {&LaneScoresOfSets<kCode>, KeySteps<kCode>::kStepOperands};
}

// The kernel that reads rows of this code in place; none for codes, and for head_dims, that are
// decoded into memory before.
inline LaneKernel FindLaneKernel(RowCode code, int dim) {
  if (code == RowCode::kBF16) {
    return dim % 16 == 0 ? LaneKernelOf<RowCode::kBF16>() : LaneKernel{};
  }
  if (dim % 32 != 0) {
    return {};
  }
  switch (code) {
    case RowCode::kE4M3:
      return LaneKernelOf<RowCode::kE4M3>();
    case RowCode::kE5M2:
      return LaneKernelOf<RowCode::kE5M2>();
    case RowCode::kI8:
      return LaneKernelOf<RowCode::kI8>();
    case RowCode::kQ8_0:
      return LaneKernelOf<RowCode::kQ8_0>();
    case RowCode::kQ4_0:
      return LaneKernelOf<RowCode::kQ4_0>();
    case RowCode::kIQ4NL:
      return LaneKernelOf<RowCode::kIQ4NL>();
    default:
      return {};
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // native bf16 dot products, vectors of 512 bits

#endif  // per-target include guard
