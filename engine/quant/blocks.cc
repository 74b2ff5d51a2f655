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

// f16 d; 32 high bits; 16 bytes, the low nibbles of weights i and i + 16. d * (q - 16).
void UnpackQ5_0(const uint8_t* p, Block* out) {
  *out = {.d = Load16(p)};
  for (int i = 0; i < 32; ++i) {
    const int nibble = i < 16 ? p[6 + i] & 15 : p[6 + i - 16] >> 4;
    const int high = p[2 + i / 8] >> (i % 8) & 1;
    out->code[i] = static_cast<int8_t>((nibble | high << 4) - 16);
  }
}

// f16 d, f16 dmin; 8 pairs (scale, minimum) of 6 bits in 12 bytes; 128 bytes of nibbles, of which
// 32 at a time hold two blocks. d * scale * q - dmin * minimum.
void UnpackQ4K(const uint8_t* p, Block* out) {
  const uint8_t* packed = p + 4;
  const uint8_t* nibbles = p + 16;
  for (int b = 0; b < 8; ++b) {
    int scale, minimum;
    if (b < 4) {
      scale = packed[b] & 63;
      minimum = packed[b + 4] & 63;
    } else {
      scale = (packed[b + 4] & 15) | packed[b - 4] >> 6 << 4;
      minimum = packed[b + 4] >> 4 | packed[b] >> 6 << 4;
    }
    out[b] = {.d = Load16(p), .dmin = Load16(p + 2)};
    out[b].factor[0] = out[b].factor[1] = static_cast<int8_t>(scale);
    out[b].minimum_factor = static_cast<uint8_t>(minimum);
    for (int i = 0; i < 32; ++i) {
      const uint8_t byte = nibbles[b / 2 * 32 + i];
      out[b].code[i] = static_cast<int8_t>(b % 2 == 0 ? byte & 15 : byte >> 4);
    }
  }
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, f16 d. Of each half of 128
// weights, four runs of 32 share a byte of high pairs. d * scale * (q - 32).
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
float Block::minimum() const { return FromF16(dmin) * static_cast<float>(minimum_factor); }

bool CanUnpack(TensorType type) {
  return type == TensorType::kQ8_0 || type == TensorType::kQ5_0 || type == TensorType::kQ4_K ||
         type == TensorType::kQ6_K;
}

void UnpackRow(TensorType type, const uint8_t* row, int64_t values, Block* blocks) {
  const BlockSize size = BlockSizeOf(type);
  for (int64_t i = 0; i < values; i += size.values, row += size.bytes, blocks += size.values / 32) {
    switch (type) {
      case TensorType::kQ8_0:
        UnpackQ8_0(row, blocks);
        break;
      case TensorType::kQ5_0:
        UnpackQ5_0(row, blocks);
        break;
      case TensorType::kQ4_K:
        UnpackQ4K(row, blocks);
        break;
      default:
        UnpackQ6K(row, blocks);
        break;
    }
  }
}

void DequantizeRow(TensorType type, const uint8_t* row, int64_t values, float* out) {
  if (type == TensorType::kF32) {
    std::memcpy(out, row, static_cast<size_t>(values) * sizeof(float));
    return;
  }
  const BlockSize size = BlockSizeOf(type);
  Block blocks[8];
  for (int64_t i = 0; i < values; i += size.values, row += size.bytes) {
    UnpackRow(type, row, size.values, blocks);
    for (int64_t j = 0; j < size.values; j += 16) {
      const Block& block = blocks[j / 32];
      const float scale = block.scale(static_cast<int>(j % 32 / 16));
      const float minimum = block.minimum();
      for (int64_t k = 0; k < 16; ++k) {
        out[i + j + k] = scale * static_cast<float>(block.code[j % 32 + k]) - minimum;
      }
    }
  }
}

}  // namespace riffle::engine
