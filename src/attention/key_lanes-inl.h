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

// f(w, keys) for the four operands of bf16 in 16 bytes of each key; lanes as above.
template <class F>
HWY_INLINE void ForOperandsOf16Bytes(const KeyBlocks& blocks, const F& f) {
  const Keys16 d;
  const hn::Repartition<uint64_t, Keys16> d64;
  const auto operands = [&](int i) HWY_ATTR { return hn::BitCast(d, blocks.of[i]); };
  const auto twice = [&](auto x) HWY_ATTR { return hn::BitCast(d64, x); };
  const auto low01 = twice(hn::InterleaveLower(d, operands(0), operands(1)));
  const auto low23 = twice(hn::InterleaveLower(d, operands(2), operands(3)));
  f(0, hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)));
  f(1, hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)));
  const auto high01 = twice(hn::InterleaveUpper(d, operands(0), operands(1)));
  const auto high23 = twice(hn::InterleaveUpper(d, operands(2), operands(3)));
  f(2, hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)));
  f(3, hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)));
}

// Transposes 16 codes of 8 bits of each key, pairs as they are: blocks[j] has pair 2 j of all keys
// in the lower halves of blocks, pair 2 j + 1 in the upper ones.
HWY_INLINE KeyBlocks TransposePairs(const KeyBlocks& blocks) {
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

// f(w, keys), f(w + 1, keys) for two transposed pairs.
template <class Decoder, class F>
HWY_INLINE void ForDecoded(const Decoder& decode, int w, hn::Vec<Bytes64> codes, const F& f) {
  const Bytes64 d;
  const Keys16 d32;
  const BF16Bytes bytes = decode(codes);
  f(w, hn::BitCast(d32, hn::InterleaveLower(d, bytes.low, bytes.high)));
  f(w + 1, hn::BitCast(d32, hn::InterleaveUpper(d, bytes.low, bytes.high)));
}

// How keys of a code pass through a kernel in steps: kStepBytes of a row, from kSkip on, are
// kStepOperands operands. ForOperands calls f(w, keys) for each of them, in order. kLines: 64-byte
// lines of 16 rows to prefetch in each step.
template <RowCode kCode>
struct KeySteps {  // codes of 8 bits
  static constexpr int kStepBytes = 32;
  static constexpr int kStepOperands = 16;
  static constexpr int kLines = 8;
  const ByteDecoder<kCode> decode;

  HWY_INLINE KeySteps() {}

  template <class F>
  HWY_INLINE void ForOperands(const uint8_t* const* rows, int step, const F& f) const {
    Run(rows, int64_t{step} * kStepBytes, f);
  }

  template <class F>
  HWY_INLINE void Run(const uint8_t* const* rows, int64_t offset, const F& f) const {
    KeyBlocks blocks[2];
    Load32Bytes(rows, offset, blocks, blocks + 1);
    for (int i = 0; i < 2; ++i) {
      const KeyBlocks pairs = TransposePairs(blocks[i]);
      for (int j = 0; j < 4; ++j) {
        ForDecoded(decode, 8 * i + 2 * j, pairs.of[j], f);
      }
    }
  }
};

template <>
struct KeySteps<RowCode::kBF16> {
  HWY_INLINE KeySteps() {}

  static constexpr int kStepBytes = 32;
  static constexpr int kStepOperands = 8;
  static constexpr int kLines = 8;

  template <class F>
  HWY_INLINE void ForOperands(const uint8_t* const* rows, int step, const F& f) const {
    KeyBlocks first;
    KeyBlocks second;
    Load32Bytes(rows, int64_t{step} * kStepBytes, &first, &second);
    ForOperandsOf16Bytes(first, f);
    ForOperandsOf16Bytes(second, [&](int w, auto keys) HWY_ATTR { f(4 + w, keys); });
  }
};

template <>
struct KeySteps<RowCode::kQ8_0> {
  static constexpr int kStepBytes = static_cast<int>(BlockBytes(KvFormat::kQ8_0));
  static constexpr int kStepOperands = kBlockElements / 2;
  static constexpr int kLines = 12;
  const KeySteps<RowCode::kI8> codes;

  HWY_INLINE KeySteps() {}

  template <class F>
  HWY_INLINE void ForOperands(const uint8_t* const* rows, int step, const F& f) const {
    codes.Run(rows, int64_t{step} * kStepBytes + kBlockHeader<RowCode::kQ8_0>, f);
  }
};

// Codes of 4 bits: byte i of a block has elements i and 16 + i.
template <RowCode kCode>
struct NibbleKeySteps {
  static constexpr int kStepBytes = static_cast<int>(BlockBytes(KvFormat::kQ4_0));
  static constexpr int kStepOperands = kBlockElements / 2;
  static constexpr int kLines = 8;
  const NibbleDecoder<kCode> decode;

  HWY_INLINE NibbleKeySteps() {}

  template <class F>
  HWY_INLINE void ForOperands(const uint8_t* const* rows, int step, const F& f) const {
    const Bytes64 d;
    const hn::Repartition<uint16_t, Bytes64> d16;
    const auto nibble = hn::Set(d, 15);
    const KeyBlocks pairs =
        TransposePairs(Load16Bytes(rows, int64_t{step} * kStepBytes + kBlockHeader<kCode>));
    for (int j = 0; j < 4; ++j) {
      ForDecoded(decode, 2 * j, hn::And(pairs.of[j], nibble), f);
    }
    for (int j = 0; j < 4; ++j) {
      const auto upper = hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, pairs.of[j])));
      ForDecoded(decode, 8 + 2 * j, hn::And(upper, nibble), f);
    }
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
};

// Prefetches the step's part of the lines of 16 rows.
template <int kLines>
HWY_INLINE void PrefetchStep(const uint8_t* const* ahead, int lines, int step) {
  if constexpr (16 % kLines == 0) {  // of one line of each row
    const int line = step * kLines / 16;
    if (line < lines) {
      for (int i = 0; i < kLines; ++i) {
        PrefetchAt(ahead[step * kLines % 16 + i], line * 64);
      }
    }
  } else {
    for (int i = step * kLines; i < (step + 1) * kLines; ++i) {
      if (i / 16 < lines) {
        PrefetchAt(ahead[i % 16], i / 16 * 64);
      }
    }
  }
}

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

// Scores of kSets times 16 keys against kRows rows.
//   q  [operands][kRows]; scores [keys][kRows], aligned
template <RowCode kCode, int kRows, int kSets>
HWY_INLINE void LaneScores(const uint32_t* HWY_RESTRICT q, const LaneKeys& keys,
                           float* HWY_RESTRICT scores) {
  using Steps = KeySteps<kCode>;
  const FloatTag<16> df;
  const Steps steps;
  hn::Vec<decltype(df)> sum[kSets][kRows];
  for (auto& set : sum) {
    for (auto& s : set) {
      s = hn::Zero(df);
    }
  }
  alignas(64) float total[IsBlocks(kCode) ? kSets * kRows * 16 : 16] = {};
  q += int64_t{keys.begin_step} * Steps::kStepOperands * kRows;
  for (int step = keys.begin_step; step < keys.end_step;
       ++step, q += Steps::kStepOperands * kRows) {
    for (int set = 0; set < kSets; ++set) {
      PrefetchStep<Steps::kLines>(keys.ahead + 16 * set, keys.ahead_lines, step);
      steps.ForOperands(keys.rows + 16 * set, step, [&](int w, auto x) HWY_ATTR {
        for (int row = 0; row < kRows; ++row) {
          sum[set][row] = BF16Math::Step(df, q[w * kRows + row], x, sum[set][row]);
        }
      });
    }
    if constexpr (IsBlocks(kCode)) {
      if (keys.scales != nullptr) {
        for (int set = 0; set < kSets; ++set) {
          const auto scale = LaneScales(keys.scales + step * kBlock + 16 * set);
          for (int row = 0; row < kRows; ++row) {
            float* at = total + (set * kRows + row) * 16;
            const auto x = sum[set][row];
            hn::Store(step == 0 ? hn::Mul(x, scale) : hn::MulAdd(x, scale, hn::Load(df, at)), df,
                      at);
            sum[set][row] = hn::Zero(df);
          }
        }
      }
    }
  }
  for (int set = 0; set < kSets; ++set) {
    if constexpr (IsBlocks(kCode)) {
      if (keys.scales != nullptr) {
        for (int row = 0; row < kRows; ++row) {
          sum[set][row] = hn::Load(df, total + (set * kRows + row) * 16);
        }
      }
    }
    StoreLanes<kRows>(sum[set], scores + 16 * set * kRows);
  }
}

// Of `sets` sets of 16 keys, one or two.
template <RowCode kCode>
void LaneScoresOf(const uint32_t* q, int lanes, LaneKeys keys, int sets, float* scores) {
  if (lanes == 4 && sets == 2) {
    return LaneScores<kCode, 4, 2>(q, keys, scores);
  }
  for (int set = 0; set < sets; ++set) {
    if (lanes == 4) {
      LaneScores<kCode, 4, 1>(q, keys, scores);
    } else if (lanes == 8) {
      LaneScores<kCode, 8, 1>(q, keys, scores);
    } else {
      LaneScores<kCode, 16, 1>(q, keys, scores);
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
  return {&LaneScoresOf<kCode>, KeySteps<kCode>::kStepOperands};
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
