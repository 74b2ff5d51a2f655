// Weights of the model expanded to f32 equal, bit for bit, those of the Python package gguf. Their
// CRC-32s are compared (tests/engine/make_dequantize_fixture.py writes the expected ones).
#include "engine/quant/blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "core/order.h"
#include "engine/default_model.h"
#include "testing/crc32.h"
#include "testing/paths.h"
#include "testing/random_models.h"
#include "testing/tiny_model.h"

namespace riffle::engine {
namespace {

using riffle::testing::Crc32;

// Checks the tensors of a fixture; returns how many.
int ExpectExpandedAs(const std::string& fixture, const GgufFile& file) {
  std::ifstream lines(std::string(test::kTestData) + "/" + fixture);
  std::string name, type, crc;
  int64_t values = 0;
  int tensors = 0;
  while (lines >> name >> type >> values >> crc) {
    SCOPED_TRACE(name);
    const Tensor* tensor = file.Find(name);
    if (tensor == nullptr) {
      ADD_FAILURE() << "the file has no such tensor";
      continue;
    }
    EXPECT_EQ(NameOf(tensor->type), type);
    const int64_t size = tensor->shape[0];
    std::vector<float> rows(static_cast<size_t>(values));
    for (int64_t row = 0; row < values / size; ++row) {
      DequantizeRow(tensor->type, tensor->data + row * tensor->row_bytes(), size,
                    rows.data() + row * size);
    }
    EXPECT_EQ(Crc32(rows.data(), rows.size() * sizeof(float)), std::stoul(crc, nullptr, 16));
    ++tensors;
  }
  return tensors;
}

TEST(Gemma3Blocks, ExpandAsThePythonPackageDoes) {
  EXPECT_EQ(ExpectExpandedAs("gemma3_dequantized.txt", GgufFile::Open(DefaultModelPath())), 28);
}

TEST(Blocks, EveryTypeExpandsAsThePythonPackageDoes) {
  const std::vector<uint8_t> bytes = riffle::testing::RandomFormatsFile();
  const auto types = static_cast<int>(std::size(riffle::testing::kAllTypes));
  EXPECT_EQ(ExpectExpandedAs("formats_dequantized.txt", GgufFile::Parse(bytes, "formats")), types);
}

TEST(Gemma3Blocks, F16) {
  EXPECT_EQ(core::ToFloat(0x3c00, DType::kF16), 1.0f);
  EXPECT_EQ(core::ToFloat(0xc000, DType::kF16), -2.0f);
  EXPECT_EQ(core::ToFloat(0x7bff, DType::kF16), 65504.0f);
  EXPECT_EQ(core::ToFloat(0x0001, DType::kF16), 0x1p-24f);
  EXPECT_EQ(core::ToFloat(0x83ff, DType::kF16), -1023 * 0x1p-24f);
  EXPECT_EQ(core::ToFloat(0x0400, DType::kF16), 0x1p-14f);
  EXPECT_TRUE(std::signbit(core::ToFloat(0x8000, DType::kF16)));
  EXPECT_TRUE(std::isinf(core::ToFloat(0x7c00, DType::kF16)));
  EXPECT_TRUE(std::isnan(core::ToFloat(0x7e00, DType::kF16)));
}

}  // namespace
}  // namespace riffle::engine
