#include "engine/quant/blocks.h"

#include <cstring>

#include "core/order.h"

namespace riffle::engine {
namespace {

float FromF16(uint16_t bits) { return core::ToFloat(bits, DType::kF16); }

uint16_t Load16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

// f16 d; 32 int8 q. d * q.
void UnpackQ8_0(const uint8_t* p, Block* out) {
  *out = {.d = Load16(p)};
  std::memcpy(out->code, p + 2, sizeof(out->code));
}

int Nibble(const uint8_t* nibbles, int i) {
  return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
}
int Bit(const uint8_t* bits, int i) { return bits[i / 8] >> (i % 8) & 1; }

// The f16 bits of -x.
uint16_t Negated(uint16_t x) { return static_cast<uint16_t>(x ^ 0x8000); }

// f16 d; 16 bytes, the nibbles of weights i and i + 16. d * (q - 8).
void UnpackQ4_0(const uint8_t* p, Block* out) {
  *out = {.d = Load16(p)};
  for (int i = 0; i < 32; ++i) out->code[i] = static_cast<int8_t>(Nibble(p + 2, i) - 8);
}

// f16 d; f16 m; nibbles as above. d * q + m.
void UnpackQ4_1(const uint8_t* p, Block* out) {
  *out = {.d = Load16(p), .dmin = Negated(Load16(p + 2)), .minimum_factor = {1, 1}};
  for (int i = 0; i < 32; ++i) out->code[i] = static_cast<int8_t>(Nibble(p + 4, i));
}

// f16 d; 32 high bits; nibbles as above. d * (q - 16).
void UnpackQ5_0(const uint8_t* p, Block* out) {
  *out = {.d = Load16(p)};
  for (int i = 0; i < 32; ++i) {
    out->code[i] = static_cast<int8_t>((Nibble(p + 6, i) | Bit(p + 2, i) << 4) - 16);
  }
}

// f16 d; f16 m; 32 high bits; nibbles as above. d * q + m.
void UnpackQ5_1(const uint8_t* p, Block* out) {
  *out = {.d = Load16(p), .dmin = Negated(Load16(p + 2)), .minimum_factor = {1, 1}};
  for (int i = 0; i < 32; ++i) {
    out->code[i] = static_cast<int8_t>(Nibble(p + 8, i) | Bit(p + 4, i) << 4);
  }
}

// f16 d; nibbles as above, which are indices of these integers. d * integer.
void UnpackIQ4NL(const uint8_t* p, Block* out) {
  static constexpr int8_t kIntegers[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                           1,    13,   25,  38,  53,  69,  89,  113};
  *out = {.d = Load16(p)};
  for (int i = 0; i < 32; ++i) out->code[i] = kIntegers[Nibble(p + 2, i)];
}

// 16 bytes, each with a scale (low nibble) and a minimum (high nibble) for 16 weights; 64 bytes of
// bit pairs; f16 d, f16 dmin. In each half of 128 weights, byte i of 32 holds the pairs of weights
// i, i + 32, i + 64 and i + 96. d * scale * q - dmin * minimum.
void UnpackQ2K(const uint8_t* p, Block* out) {
  for (int b = 0; b < 8; ++b) {
    const uint8_t* pairs = p + 16 + b / 4 * 32;
    out[b] = {.d = Load16(p + 80), .dmin = Load16(p + 82)};
    for (int half = 0; half < 2; ++half) {
      out[b].factor[half] = static_cast<int8_t>(p[2 * b + half] & 15);
      out[b].minimum_factor[half] = p[2 * b + half] >> 4;
    }
    for (int i = 0; i < 32; ++i) {
      out[b].code[i] = static_cast<int8_t>(pairs[i] >> (2 * (b % 4)) & 3);
    }
  }
}

// 32 bytes of high bits; 64 of low pairs, arranged as in Q2_K; 16 scales of 6 bits in 12 bytes:
// the low nibbles of 0 to 7 and of 8 to 15 in the first eight, the upper pairs in the others; f16
// d. Weight i has bit i / 32 of byte i % 32 for its high bit. d * (scale - 32) * (q - 4).
void UnpackQ3K(const uint8_t* p, Block* out) {
  const uint8_t* packed = p + 96;
  for (int b = 0; b < 8; ++b) {
    const uint8_t* pairs = p + 32 + b / 4 * 32;
    out[b] = {.d = Load16(p + 108)};
    for (int half = 0; half < 2; ++half) {
      const int s = 2 * b + half;
      const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
      const int high = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
      out[b].factor[half] = static_cast<int8_t>((low | high << 4) - 32);
    }
    for (int i = 0; i < 32; ++i) {
      const int low = pairs[i] >> (2 * (b % 4)) & 3;
      const int high = p[i] >> b & 1;
      out[b].code[i] = static_cast<int8_t>((low | high << 2) - 4);
    }
  }
}

// The scale and minimum, of 6 bits each, of block b of Q4_K and Q5_K: eight pairs in 12 bytes.
void UnpackScale(const uint8_t* packed, int b, Block* out) {
  const int scale = b < 4 ? packed[b] & 63 : (packed[b + 4] & 15) | packed[b - 4] >> 6 << 4;
  const int minimum = b < 4 ? packed[b + 4] & 63 : packed[b + 4] >> 4 | packed[b] >> 6 << 4;
  out->factor[0] = out->factor[1] = static_cast<int8_t>(scale);
  out->minimum_factor[0] = out->minimum_factor[1] = static_cast<uint8_t>(minimum);
}

// f16 d, f16 dmin; scales and minima; 128 bytes of nibbles, of which 32 at a time hold two blocks.
// Q5_K has 32 bytes of high bits before them, bit b of byte i that of weight i of block b.
// d * scale * q - dmin * minimum.
void UnpackQ4Or5K(const uint8_t* p, bool high_bits, Block* out) {
  const uint8_t* high = p + 16;
  const uint8_t* nibbles = high_bits ? high + 32 : high;
  for (int b = 0; b < 8; ++b) {
    out[b] = {.d = Load16(p), .dmin = Load16(p + 2)};
    UnpackScale(p + 4, b, &out[b]);
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = nibbles[b / 2 * 32 + i];
      const int low = b % 2 == 0 ? byte & 15 : byte >> 4;
      out[b].code[i] = static_cast<int8_t>(low | (high_bits ? (high[i] >> b & 1) << 4 : 0));
    }
  }
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, f16 d. In each half of 128
// weights, byte i of 32 has the high pairs of weights i + 32 j, j = 0..3. d * scale * (q - 32).
void UnpackQ6K(const uint8_t* p, Block* out) {
  for (int b = 0; b < 8; ++b) {
    const int half = b / 4;
    const int run = b % 4;
    const uint8_t* low = p + half * 64 + run % 2 * 32;
    const uint8_t* high = p + 128 + half * 32;
    out[b] = {.d = Load16(p + 208)};
    std::memcpy(out[b].factor, p + 192 + 2 * b, 2);
    for (int i = 0; i < 32; ++i) {
      const int nibble = run < 2 ? low[i] & 15 : low[i] >> 4;
      const int pair = high[i] >> (2 * run) & 3;
      out[b].code[i] = static_cast<int8_t>((nibble | pair << 4) - 32);
    }
  }
}

}  // namespace

float Block::scale(int half) const { return FromF16(d) * static_cast<float>(factor[half]); }
float Block::minimum(int half) const {
  return FromF16(dmin) * static_cast<float>(minimum_factor[half]);
}

bool IsQuantised(TensorType type) {
  return type != TensorType::kF32 && type != TensorType::kF16 && type != TensorType::kBF16;
}

namespace {

void UnpackOne(TensorType type, const uint8_t* p, Block* out) {
  switch (type) {
    case TensorType::kQ4_0:
      return UnpackQ4_0(p, out);
    case TensorType::kQ4_1:
      return UnpackQ4_1(p, out);
    case TensorType::kQ5_0:
      return UnpackQ5_0(p, out);
    case TensorType::kQ5_1:
      return UnpackQ5_1(p, out);
    case TensorType::kQ8_0:
      return UnpackQ8_0(p, out);
    case TensorType::kQ2_K:
      return UnpackQ2K(p, out);
    case TensorType::kQ3_K:
      return UnpackQ3K(p, out);
    case TensorType::kQ4_K:
      return UnpackQ4Or5K(p, false, out);
    case TensorType::kQ5_K:
      return UnpackQ4Or5K(p, true, out);
    case TensorType::kQ6_K:
      return UnpackQ6K(p, out);
    case TensorType::kIQ4_NL:
      return UnpackIQ4NL(p, out);
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      return;
  }
}

void WidenRow(DType dtype, const uint8_t* row, int64_t values, float* out) {
  for (int64_t i = 0; i < values; ++i) {
    out[i] = core::ToFloat(Load16(row + 2 * i), dtype);
  }
}

}  // namespace

void UnpackRow(TensorType type, const uint8_t* row, int64_t values, Block* blocks) {
  const BlockSize size = BlockSizeOf(type);
  for (int64_t i = 0; i < values; i += size.values, row += size.bytes, blocks += size.values / 32) {
    UnpackOne(type, row, blocks);
  }
}

void DequantizeRow(TensorType type, const uint8_t* row, int64_t values, float* out) {
  if (type == TensorType::kF32) {
    std::memcpy(out, row, static_cast<size_t>(values) * sizeof(float));
    return;
  }
  if (!IsQuantised(type)) {
    return WidenRow(type == TensorType::kF16 ? DType::kF16 : DType::kBF16, row, values, out);
  }
  const BlockSize size = BlockSizeOf(type);
  Block blocks[8];
  for (int64_t i = 0; i < values; i += size.values, row += size.bytes) {
    UnpackRow(type, row, size.values, blocks);
    for (int64_t j = 0; j < size.values; j += 16) {
      const Block& block = blocks[j / 32];
      const int half = static_cast<int>(j % 32 / 16);
      const float scale = block.scale(half);
      const float minimum = block.minimum(half);
      for (int64_t k = 0; k < 16; ++k) {
        out[i + j + k] = scale * static_cast<float>(block.code[j % 32 + k]) - minimum;
      }
    }
  }
}

}  // namespace riffle::engine
