// Products with quantised weights against a double of the same weights and activations; the row
// loops against formulas in double. On every SIMD target.
#include "engine/quant/matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "engine/layers/rope.h"
#include "engine/layers/row_kernels.h"
#include "engine/quant/blocks.h"
#include "testing/tiny_model.h"

namespace riffle::engine {
namespace {

using riffle::testing::GgufWriter;
using riffle::testing::RandomTensor;

// A file of one tensor.
struct OneTensor {
  OneTensor(TensorType type, int64_t inputs, int64_t outputs, std::mt19937& random) {
    GgufWriter writer;
    writer.AddTensor("w", {inputs, outputs}, static_cast<uint32_t>(type), 0);
    bytes = writer.Finish(RandomTensor(type, inputs * outputs, 0.1f, random));
  }
  std::vector<uint8_t> bytes;
};

std::vector<float> RandomRows(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = normal(random);
    value *= random() % 50 == 0 ? 40.0f : 1.0f;  // outliers, as activations have them
  }
  return values;
}

std::vector<float> Product1(const Matrix& matrix, const std::vector<float>& x, int64_t rows,
                            ThreadPool* pool = nullptr) {
  Activations rounded;
  rounded.Resize(rows, matrix.inputs);
  for (int64_t row = 0; row < rows; ++row) {
    RoundRow(x.data() + row * matrix.inputs, row, rounded);
  }
  const int64_t stride = matrix.panels() * kPanel + 3;
  std::vector<float> y(static_cast<size_t>(rows * stride), 77.0f);
  const riffle::engine::Product product[] = {{&matrix, y.data(), stride}};
  Multiply(rounded, product, pool);
  for (int64_t row = 0; row < rows; ++row) {
    EXPECT_EQ(y[static_cast<size_t>((row + 1) * stride - 1)], 77.0f) << "written past the panels";
  }
  std::vector<float> tight;
  for (int64_t row = 0; row < rows; ++row) {
    tight.insert(tight.end(), y.begin() + row * stride, y.begin() + row * stride + matrix.outputs);
  }
  return tight;
}

void ForTargets(const std::function<void()>& test) {
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    SetTarget(target);
    test();
  }
  SetTarget("");
}

// What an Activations row stands for.
std::vector<double> Value(const Activations& x, int64_t row) {
  std::vector<double> values;
  for (int64_t b = 0; b < x.blocks(); ++b) {
    const int64_t at = x.At(b, row);
    for (int64_t i = 0; i < 32; ++i) {
      values.push_back(double{x.step()[at]} *
                       (256 * x.planes()[at * 64 + i] + x.planes()[at * 64 + 32 + i] - 32768));
    }
  }
  return values;
}

TEST(Gemma3Matrix, ProductsAreThoseOfTheWeights) {
  ForTargets([] {
    std::mt19937 random(1);
    for (const TensorType type : riffle::testing::kAllTypes) {
      for (const int64_t outputs : {32, 40}) {
        SCOPED_TRACE(NameOf(type));
        const int64_t inputs = 512;
        const int64_t rows = 70;
        const OneTensor one(type, inputs, outputs, random);
        const GgufFile file = GgufFile::Parse(one.bytes, "one");
        const Tensor& tensor = *file.Find("w");
        const Matrix matrix = Pack(file, tensor, {}, nullptr);
        const std::vector<float> x = RandomRows(rows * inputs, random);
        const std::vector<float> y = Product1(matrix, x, rows);
        std::vector<float> weights(static_cast<size_t>(inputs));
        for (int64_t output = 0; output < outputs; ++output) {
          DequantizeRow(type, tensor.data + output * tensor.row_bytes(), inputs, weights.data());
          for (int64_t row = 0; row < rows; ++row) {
            double sum = 0;
            double bound = 0;  // of the activations' rounding: half a step of each block
            double size = 0;
            for (int64_t block = 0; block < inputs; block += 32) {
              double largest = 0, weight = 0;
              for (int64_t i = block; i < block + 32; ++i) {
                const double value = x[static_cast<size_t>(row * inputs + i)];
                const double w = weights[static_cast<size_t>(i)];
                sum += w * value;
                size += std::abs(w * value);
                largest = std::max(largest, std::abs(value));
                weight += std::abs(w);
              }
              // A power of two that takes the largest to at most 32767.
              bound += weight * std::exp2(std::ceil(std::log2(largest / 32767))) * 0.501;
            }
            // And of f32: the minimum of Q4_K and the rest are added apart.
            bound += size * 4e-6;
            ASSERT_NEAR(y[static_cast<size_t>(row * outputs + output)], sum, bound)
                << "row " << row << " output " << output;
          }
        }
      }
    }
  });
}

TEST(Gemma3Matrix, ARowIsTheSameAloneAndAmongOthers) {
  ForTargets([] {
    std::mt19937 random(2);
    ThreadPool three(3);
    for (const TensorType type : riffle::testing::kAllTypes) {
      const OneTensor one(type, 256, 96, random);
      const GgufFile file = GgufFile::Parse(one.bytes, "one");
      const Matrix matrix = Pack(file, *file.Find("w"), {}, &three);
      const int64_t rows = 131;
      const std::vector<float> x = RandomRows(rows * 256, random);
      const std::vector<float> all = Product1(matrix, x, rows, &three);
      for (int64_t row = 0; row < rows; ++row) {
        const std::vector<float> one_row(x.begin() + row * 256, x.begin() + (row + 1) * 256);
        const std::vector<float> alone = Product1(matrix, one_row, 1);
        const std::vector<float> among(all.begin() + row * 96, all.begin() + (row + 1) * 96);
        ASSERT_EQ(alone, among) << NameOf(type) << " row " << row;
      }
    }
  });
}

TEST(Gemma3Matrix, NothingFiniteComesOfNaN) {
  ForTargets([] {
    std::mt19937 random(3);
    const OneTensor one(TensorType::kQ8_0, 64, 16, random);
    const GgufFile file = GgufFile::Parse(one.bytes, "one");
    const Matrix matrix = Pack(file, *file.Find("w"), {}, nullptr);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (const size_t at : {size_t{0}, size_t{40}, size_t{63}}) {
        std::vector<float> x(64, 1.0f);
        x[at] = bad;
        for (const float y : Product1(matrix, x, 1)) {
          EXPECT_TRUE(std::isnan(y));
        }
      }
    }
    for (const float y : Product1(matrix, std::vector<float>(64, 1e-38f), 1)) {
      EXPECT_EQ(y, 0.0f);
    }
  });
}

// The weights in their own order, wherever a packing puts them: each output has one that is not 0.
TEST(Gemma3Matrix, EveryWeightMeetsItsInput) {
  ForTargets([] {
    for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ5_0}) {
      const int64_t inputs = 64;
      GgufWriter writer;
      writer.AddTensor("w", {inputs, inputs}, static_cast<uint32_t>(type), 0);
      std::string data;
      for (int64_t output = 0; output < inputs; ++output) {
        for (int64_t block = 0; block < inputs; block += 32) {
          std::string bytes(static_cast<size_t>(BlockSizeOf(type).bytes), '\0');
          bytes[1] = 0x3c;  // d = 1
          for (int64_t i = 0; i < 32; ++i) {
            const int value = block + i == output ? -13 : 0;
            if (type == TensorType::kQ8_0) {
              bytes[static_cast<size_t>(2 + i)] = static_cast<char>(value);
            } else {
              bytes[static_cast<size_t>(2 + i / 8)] |=
                  static_cast<char>((value + 16) >> 4 << (i % 8));
              bytes[static_cast<size_t>(6 + i % 16)] |=
                  static_cast<char>(((value + 16) & 15) << (i / 16 * 4));
            }
          }
          data += bytes;
        }
      }
      const std::vector<uint8_t> bytes = writer.Finish(data);
      const GgufFile file = GgufFile::Parse(bytes, "one");
      const Matrix matrix = Pack(file, *file.Find("w"), {}, nullptr);
      std::vector<float> x(static_cast<size_t>(inputs));
      for (size_t i = 0; i < x.size(); ++i) {
        x[i] = i % 32 == 0 ? 32767.0f : static_cast<float>(i);  // steps of 1
      }
      const std::vector<float> y = Product1(matrix, x, 1);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(y[i], -13 * x[i]) << NameOf(type) << " output " << i;
      }
    }
  });
}

TEST(Gemma3Matrix, GatedProductsAreTheirFormula) {
  ForTargets([] {
    std::mt19937 random(5);
    ThreadPool three(3);
    const int64_t inputs = 256, outputs = 96, rows = 131;
    const OneTensor a(TensorType::kQ5_0, inputs, outputs, random);
    const OneTensor b(TensorType::kQ8_0, inputs, outputs, random);
    const GgufFile gate_file = GgufFile::Parse(a.bytes, "gate");
    const GgufFile up_file = GgufFile::Parse(b.bytes, "up");
    const Matrix gate = Pack(gate_file, *gate_file.Find("w"), {}, nullptr);
    const Matrix up = Pack(up_file, *up_file.Find("w"), {}, nullptr);
    std::vector<float> x = RandomRows(rows * inputs, random);
    x[0] = std::numeric_limits<float>::quiet_NaN();  // row 0 alone is spoiled
    Activations rounded, out;
    rounded.Resize(rows, inputs);
    out.Resize(rows, outputs);
    for (int64_t row = 0; row < rows; ++row) {
      RoundRow(x.data() + row * inputs, row, rounded);
    }
    const std::vector<float> gates = Product1(gate, x, rows), ups = Product1(up, x, rows);
    for (const Activation activation : {Activation::kGelu, Activation::kSilu}) {
      MultiplyGated(rounded, gate, up, activation, out, &three);
      for (int64_t row = 0; row < rows; ++row) {
        const std::vector<double> values = Value(out, row);
        for (int64_t i = 0; i < outputs; ++i) {
          const double g = gates[static_cast<size_t>(row * outputs + i)];
          const double u = ups[static_cast<size_t>(row * outputs + i)];
          const double activated =
              activation == Activation::kGelu
                  ? g / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)))
                  : g / (1 + std::exp(-g));
          if (row == 0) {
            ASSERT_TRUE(std::isnan(values[static_cast<size_t>(i)]));
            continue;
          }
          ASSERT_NEAR(values[static_cast<size_t>(i)], activated * u,
                      out.step()[out.At(i / 32, row)] * 0.501 + 1e-6 * std::abs(g * u))
              << "row " << row << " output " << i << " gate " << g;
        }
        // Alone as among others, bit for bit.
        Activations alone, alone_out;
        alone.Resize(1, inputs);
        alone_out.Resize(1, outputs);
        RoundRow(x.data() + row * inputs, 0, alone);
        MultiplyGated(alone, gate, up, activation, alone_out, nullptr);
        if (row > 0) {
          ASSERT_EQ(Value(alone_out, 0), values);
        }
      }
    }
  });
}

TEST(Gemma3Rope, AnglesAreTheirFormula) {
  const int64_t size = 48;
  std::vector<float> factors;
  for (int64_t i = 0; i < size / 2; ++i) {
    factors.push_back(i < 10 ? 1.0f : 8.0f);
  }
  for (const RopeSpec& spec : {RopeSpec{.base = 10000}, RopeSpec{.base = 1000000, .scale = 0.125},
                               RopeSpec{.base = 500000, .factors = "f"}}) {
    const std::span<const float> used(factors.data(), spec.factors.empty() ? 0 : factors.size());
    RopeAngles at_once(size, spec, used), piecewise(size, spec, used);
    at_once.Grow(40000);
    for (int64_t last : {0, 5, 63, 64, 64, 200, 40000}) {
      piecewise.Grow(last);
    }
    for (int64_t position = 0; position <= 40000; position += position < 300 ? 1 : 331) {
      for (int64_t i = 0; i < size / 2; ++i) {
        const double factor = used.empty() ? 1.0 : factors[static_cast<size_t>(i)];
        const double angle = static_cast<double>(position) * spec.scale / factor *
                             std::pow(spec.base, -2.0 * static_cast<double>(i) / size);
        const float* row = at_once.At(position);
        ASSERT_NEAR(row[i], std::cos(angle), 6e-8) << position << " " << i;
        ASSERT_NEAR(row[size / 2 + i], std::sin(angle), 6e-8) << position << " " << i;
        ASSERT_EQ(row[i], piecewise.At(position)[i]);
        ASSERT_EQ(row[size / 2 + i], piecewise.At(position)[size / 2 + i]);
      }
    }
  }
}

TEST(Gemma3Rows, AreTheirFormulas) {
  ForTargets([] {
    std::mt19937 random(4);
    const int64_t size = 320;
    const std::vector<float> x = RandomRows(size, random);
    const std::vector<float> other = RandomRows(size, random);
    const std::vector<float> weight = RandomRows(size, random);
    double squares = 0;
    for (const float value : x) {
      squares += double{value} * value;
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(size) + 1e-6);
    const Norm norm = {weight.data(), 1e-6f};
    Activations normed;
    normed.Resize(3, size);
    NormRoundRow(x.data(), norm, 1, normed);
    std::vector<float> plain(size), added = other;
    NormRow(x.data(), norm, size, plain.data());
    AddNormRow(x.data(), norm, size, added.data());
    const std::vector<double> normed_row = Value(normed, 1);
    for (size_t i = 0; i < static_cast<size_t>(size); ++i) {
      const double wanted = x[i] * inverse * weight[i];
      const double close = 1e-6 * std::abs(wanted) + 1e-7;
      ASSERT_NEAR(plain[i], wanted, close);
      ASSERT_NEAR(added[i], other[i] + wanted, close + 1e-7 * std::abs(other[i]));
      ASSERT_NEAR(normed_row[i], wanted, close + normed.step()[i / 32 * 3 + 1] * 0.501);
    }
    std::vector<float> turn(size), turned = x;
    for (size_t i = 0; i < size / 2; ++i) {
      turn[i] = static_cast<float>(std::cos(0.01 * static_cast<double>(i)));
      turn[i + size / 2] = static_cast<float>(std::sin(0.01 * static_cast<double>(i)));
    }
    NormRopeRow(norm, turn.data(), size, turned.data());
    for (size_t i = 0; i < size / 2; ++i) {
      const double a = plain[i], b = plain[i + size / 2], c = turn[i], s = turn[i + size / 2];
      ASSERT_NEAR(turned[i], a * c - b * s, 1e-6 * (std::abs(a) + std::abs(b)));
      ASSERT_NEAR(turned[i + size / 2], b * c + a * s, 1e-6 * (std::abs(a) + std::abs(b)));
    }
    std::vector<float> only_turned = plain;
    RopeRow(turn.data(), size, only_turned.data());
    ASSERT_EQ(only_turned, turned);
    std::vector<float> sum = x;
    AddRow(other.data(), size, sum.data());
    for (const int64_t capped_size : {size, int64_t{1}, int64_t{77}}) {
      std::vector<float> capped = x;
      SoftCapRow(3.5f, capped_size, capped.data());
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(sum[i], x[i] + other[i]);
        const bool inside = i < static_cast<size_t>(capped_size);
        ASSERT_NEAR(capped[i], inside ? 3.5 * std::tanh(x[i] / 3.5) : x[i], inside ? 3e-6 : 0);
      }
    }
  });
}

}  // namespace
}  // namespace riffle::engine
