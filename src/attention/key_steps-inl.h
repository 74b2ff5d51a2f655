// Keys of 16 bits and of codes, transposed for the kernels of key_lanes-inl.h: 16 keys in the lanes
// of a vector. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_KEY_STEPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_KEY_STEPS_INL_H_
#undef RIFFLE_ATTENTION_KEY_STEPS_INL_H_
#else
#define RIFFLE_ATTENTION_KEY_STEPS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/decode_bf16-inl.h"
#include "core/bf16_dot.h"

#if RIFFLE_BF16_DOT && HWY_CAP_GE512

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Lane 4 b + i of a vector belongs to key 4 i + b, so that the transpositions below stay within
// blocks of 128 bits. StoreLanes brings scores back into the order of the keys.
using Keys16 = hn::CappedTag<uint32_t, 16>;

// Four vectors with the bytes of 16 keys: block b of vector i has 16 bytes of key 4 i + b.
struct KeyBlocks {
  hn::Vec<Bytes64> vec[4];
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
    first->vec[i] = hn::Vec<Bytes64>{_mm512_shuffle_i64x2(low.raw, high.raw, 0x88)};
    second->vec[i] = hn::Vec<Bytes64>{_mm512_shuffle_i64x2(low.raw, high.raw, 0xdd)};
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
    blocks.vec[i] = hn::Combine(d, high, low);
  }
  return blocks;
}

// Stores the four operands of bf16 in 16 bytes of each key, transposed to to[4][16], aligned.
HWY_INLINE void StoreOperandsOf16Bytes(const KeyBlocks& blocks, uint32_t* HWY_RESTRICT to) {
  const Keys16 d;
  const hn::Repartition<uint64_t, Keys16> d64;
  const auto operands = [&](int i) HWY_ATTR { return hn::BitCast(d, blocks.vec[i]); };
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

// Transposes 16 codes of 8 bits of each key in units of pairs: vector j has pair 2 j of all keys in
// the lower halves of blocks, pair 2 j + 1 in the upper ones.
HWY_INLINE KeyBlocks TransposedPairs(const KeyBlocks& blocks) {
  const hn::Repartition<uint16_t, Bytes64> d16;
  const hn::Repartition<uint32_t, Bytes64> d32;
  const Bytes64 d;
  const auto pairs = [&](int i) HWY_ATTR { return hn::BitCast(d16, blocks.vec[i]); };
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
    hn::Store(pairs.vec[i], Bytes64(), to + 64 * i);
  }
}

// Two neighbouring operands of 16 keys.
struct TwoOperands {
  hn::Vec<Keys16> operand[2];
};

// Decodes two transposed pairs of codes to two operands.
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
      const auto upper = hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, pairs.vec[i])));
      hn::Store(hn::And(pairs.vec[i], nibble), d, codes + 64 * i);
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

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // native bf16 dot products, vectors of 512 bits

#endif  // per-target include guard
