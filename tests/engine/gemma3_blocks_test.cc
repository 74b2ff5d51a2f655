// Weights of the model expanded to f32 equal, bit for bit, those of the Python package gguf. Their
// CRC-32s are compared (tests/engine/make_dequantize_fixture.py writes the expected ones).
#include "engine/quant/blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include "engine/default_model.h"

namespace riffle::engine {
namespace {

uint32_t Crc32(const uint8_t* data, size_t size) {
  static const std::vector<uint32_t> table = [] {
    std::vector<uint32_t> entries(256);
    for (uint32_t i = 0; i < 256; ++i) {
      entries[i] = i;
      for (int bit = 0; bit < 8; ++bit) {
        entries[i] = entries[i] >> 1 ^ (entries[i] & 1 ? 0xedb88320u : 0);
      }
    }
    return entries;
  }();
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc = crc >> 8 ^ table[(crc ^ data[i]) & 255];
  }
  return ~crc;
}

TEST(Gemma3Blocks, ExpandAsThePythonPackageDoes) {
  const GgufFile file = GgufFile::Open(DefaultModelPath());
  std::ifstream fixture(std::string(RIFFLE_TEST_DATA) + "/gemma3_dequantized.txt");
  std::string name, type, crc;
  int64_t values = 0;
  int tensors = 0;
  while (fixture >> name >> type >> values >> crc) {
    SCOPED_TRACE(name);
    const Tensor* tensor = file.Find(name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(NameOf(tensor->type), type);
    const int64_t size = tensor->shape[0];
    std::vector<float> rows(static_cast<size_t>(values));
    for (int64_t row = 0; row < values / size; ++row) {
      DequantizeRow(tensor->type, tensor->data + row * tensor->row_bytes(), size,
                    rows.data() + row * size);
    }
    EXPECT_EQ(Crc32(reinterpret_cast<const uint8_t*>(rows.data()), rows.size() * sizeof(float)),
              std::stoul(crc, nullptr, 16));
    ++tensors;
  }
  EXPECT_EQ(tensors, 28);
}

TEST(Gemma3Blocks, F16) {
  EXPECT_EQ(FromF16(0x3c00), 1.0f);
  EXPECT_EQ(FromF16(0xc000), -2.0f);
  EXPECT_EQ(FromF16(0x7bff), 65504.0f);
  EXPECT_EQ(FromF16(0x0001), 0x1p-24f);
  EXPECT_EQ(FromF16(0x83ff), -1023 * 0x1p-24f);
  EXPECT_EQ(FromF16(0x0400), 0x1p-14f);
  EXPECT_TRUE(std::signbit(FromF16(0x8000)));
  EXPECT_TRUE(std::isinf(FromF16(0x7c00)));
  EXPECT_TRUE(std::isnan(FromF16(0x7e00)));
}

}  // namespace
}  // namespace riffle::engine
