// What WriteKv makes of single values: every boundary between two codes, numbers that overflow,
// subnormals, NaNs; the same bits on every SIMD target.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "riffle/runtime.h"
#include "riffle/write_kv.h"
#include "testing/write_kv_reference.h"

namespace riffle::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// One page of one token of one head.
struct Row {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> scale = std::vector<uint8_t>(4);

  float Scale(DType dtype) const {
    uint32_t code = 0;
    std::memcpy(&code, scale.data(), SizeOf(dtype));
    return static_cast<float>(DecodeCode(dtype, code));
  }
};

Row Write(const std::vector<float>& x, DType dtype, KvFormat format = KvFormat::kPlain,
          const KvScales& scales = {}, bool compute = false) {
  const auto n = static_cast<int64_t>(x.size());
  PagedKvOut pages{nullptr, dtype, 1, 1, 1, n, n, n, n, scales, format};
  Row row;
  row.bytes.resize(static_cast<size_t>(RowBytes(pages)));
  pages.data = row.bytes.data();
  pages.computed_scales = compute ? row.scale.data() : nullptr;
  std::vector<float> unused(x.size());
  const PagedKvOut values{unused.data(), DType::kF32, 1, 1, 1, n, n, n, n};
  const HeadsView in{x.data(), DType::kF32, 1, 1, n, n, n};
  WriteKv(in, in, std::vector<int32_t>{0}, pages, values);
  return row;
}

uint32_t CodeAt(const Row& row, DType dtype, size_t i) {
  uint32_t code = 0;
  std::memcpy(&code, row.bytes.data() + i * SizeOf(dtype), SizeOf(dtype));
  return code;
}

template <typename F>
void OnEveryTarget(const F& f) {
  for (const std::string& target : Targets()) {
    SCOPED_TRACE(target);
    SetTarget(target);
    f();
  }
  SetTarget("");
}

// Values around every boundary between neighbours, from the codes alone.
TEST(WriteKvValues, EightBitFloatsToTheNearest) {
  OnEveryTarget([] {
    for (const DType dtype : {DType::kE4M3, DType::kE5M2}) {
      const uint32_t largest = dtype == DType::kE4M3 ? 0x7e : 0x7b;
      std::vector<float> x;
      std::vector<uint32_t> codes;
      for (uint32_t code = 0; code <= largest; ++code) {
        const auto value = static_cast<float>(DecodeCode(dtype, code));
        const float next = code < largest          ? static_cast<float>(DecodeCode(dtype, code + 1))
                           : dtype == DType::kE4M3 ? 480.0f
                                                   : 65536.0f;
        const float boundary = (value + next) / 2;
        const uint32_t above = code == largest && dtype == DType::kE4M3 ? code : code + 1;
        for (const float sign : {1.0f, -1.0f}) {
          const uint32_t bit = sign < 0 ? 0x80 : 0;
          x.insert(x.end(), {sign * value, sign * std::nextafter(boundary, 0.0f), sign * boundary,
                             sign * std::nextafter(boundary, kInf)});
          codes.insert(codes.end(),
                       {bit | code, bit | code, bit | (code % 2 == 0 ? code : above), bit | above});
        }
      }
      const Row row = Write(x, dtype);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(CodeAt(row, dtype, i), codes[i]) << Name(dtype) << " " << std::hexfloat << x[i];
      }
    }
  });
}

TEST(WriteKvValues, WhatOverflowsAndNaN) {
  const std::vector<float> x = {kInf,   -kInf,   1e30f,   -1e30f, kNaN,     -kNaN,
                                1e-45f, -1e-45f, -0.0f,   449.0f, 60000.0f, -60000.0f,
                                127.5f, 128.5f,  -128.5f, -129.0f};
  OnEveryTarget([&] {
    const auto expect = [&](DType dtype, const std::vector<uint32_t>& codes,
                            const KvScales& scales) {
      const Row row = Write(x, dtype, KvFormat::kPlain, scales);
      for (size_t i = 0; i < codes.size(); ++i) {
        EXPECT_EQ(CodeAt(row, dtype, i), codes[i]) << Name(dtype) << " of " << x[i];
      }
    };
    expect(DType::kE4M3, {0x7e, 0xfe, 0x7e, 0xfe, 0x7f, 0xff, 0, 0x80, 0x80, 0x7e, 0x7e, 0xfe}, {});
    expect(DType::kE5M2, {0x7c, 0xfc, 0x7c, 0xfc, 0x7e, 0xfe, 0, 0x80, 0x80, 0x5f, 0x7b, 0xfb}, {});
    const float one = 1;
    KvScales scales;
    scales.data = &one;
    expect(DType::kI8, {127, 0x80, 127, 0x80, 0, 0, 0, 0, 0, 127, 127, 0x80, 127, 127, 0x80, 0x80},
           scales);
  });
}

// One in 1021 of all floats, to each type of one and two bytes, as the reference has them.
TEST(WriteKvValues, AllMagnitudesOnEveryTarget) {
  constexpr size_t kRow = 1 << 16;
  for (const DType dtype : {DType::kE4M3, DType::kE5M2, DType::kF16, DType::kBF16}) {
    std::vector<std::vector<float>> rows;
    std::vector<std::vector<uint32_t>> codes;
    for (uint64_t bits = 0; bits < uint64_t{1} << 32;) {
      std::vector<float> x;
      std::vector<uint32_t> row;
      for (; x.size() < kRow && bits < uint64_t{1} << 32; bits += 20011) {
        x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
        row.push_back(NearestCode(dtype, x.back()));
      }
      rows.push_back(x);
      codes.push_back(row);
    }
    OnEveryTarget([&] {
      for (size_t r = 0; r < rows.size(); ++r) {
        const Row row = Write(rows[r], dtype);
        for (size_t i = 0; i < rows[r].size(); ++i) {
          ASSERT_TRUE(SameCode(dtype, CodeAt(row, dtype, i), codes[r][i]))
              << Name(dtype) << " " << std::hexfloat << rows[r][i];
        }
      }
    });
  }
}

TEST(WriteKvValues, ComputedScales) {
  OnEveryTarget([] {
    KvScales scales;
    // The largest magnitude has the largest code; e8m0 rounds up, to 2 for 500 / 448.
    for (const auto& [dtype, largest] :
         {std::pair{DType::kE4M3, 448.0f}, {DType::kE5M2, 57344.0f}, {DType::kI8, 127.0f}}) {
      scales.dtype = DType::kF32;
      const Row row = Write({1, -largest * 3, 2, 0}, dtype, KvFormat::kPlain, scales, true);
      EXPECT_EQ(row.Scale(DType::kF32), 3.0f);
      EXPECT_EQ(DecodeCode(dtype, CodeAt(row, dtype, 1)), -largest);
      scales.dtype = DType::kE8M0;
      EXPECT_EQ(
          Write({largest * 1.1f, 1}, dtype, KvFormat::kPlain, scales, true).Scale(DType::kE8M0),
          2.0f);
      EXPECT_EQ(Write({largest, 1}, dtype, KvFormat::kPlain, scales, true).Scale(DType::kE8M0),
                1.0f);
      // Nothing but zeros: elements are zeros, whatever the scale.
      EXPECT_EQ(CodeAt(Write({0, -0.0f}, dtype, KvFormat::kPlain, scales, true), dtype, 0), 0u);
      scales.dtype = DType::kF32;
      const Row zeros = Write({0, -0.0f}, dtype, KvFormat::kPlain, scales, true);
      EXPECT_EQ(zeros.Scale(DType::kF32), 0.0f);
      EXPECT_EQ(zeros.bytes, (std::vector<uint8_t>{0, 0}));
      // A scale that f16 rounds to zero.
      scales.dtype = DType::kF16;
      const Row tiny = Write({1e-9f, -1e-9f}, dtype, KvFormat::kPlain, scales, true);
      EXPECT_EQ(tiny.bytes, (std::vector<uint8_t>{0, 0}));
      // A NaN or an infinity makes all of a row NaN when it is read.
      for (const DType of : {DType::kF32, DType::kF16, DType::kBF16, DType::kE8M0}) {
        scales.dtype = of;
        EXPECT_TRUE(
            std::isnan(Write({1, kNaN, 2}, dtype, KvFormat::kPlain, scales, true).Scale(of)));
        const float infinite = Write({1, -kInf}, dtype, KvFormat::kPlain, scales, true).Scale(of);
        EXPECT_TRUE(of == DType::kE8M0 ? std::isnan(infinite) : infinite == kInf) << infinite;
      }
    }
  });
}

// An f16 scale below 2^-14 has few bits. Rounded down it makes quotients that overflow e5m2; finite
// elements stay finite all the same.
TEST(WriteKvValues, ComputedScalesOfFewBitsDoNotOverflow) {
  OnEveryTarget([] {
    for (const DType dtype : {DType::kE4M3, DType::kE5M2, DType::kI8}) {
      for (const DType scale_dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
        for (float amax = 0x1p-140f; amax < 1; amax *= 1.37f) {
          const Row row = Write({amax, -amax, amax / 3}, dtype, KvFormat::kPlain,
                                {.dtype = scale_dtype, .token_stride = 1}, true);
          const auto scale = static_cast<double>(row.Scale(scale_dtype));
          for (size_t i = 0; i < 3; ++i) {
            const double x = i == 0 ? amax : i == 1 ? -amax : amax / 3;
            const double got = DecodeCode(dtype, CodeAt(row, dtype, i)) * scale;
            // Saturated by up to a third, or rounded by half a step of the scale; zero where no
            // scale is that small.
            ASSERT_LE(std::abs(got - (scale == 0 ? 0 : x)), std::abs(x) / 2 + scale / 2)
                << Name(dtype) << " by " << Name(scale_dtype) << " " << amax;
          }
        }
      }
    }
  });
}

TEST(WriteKvValues, ScalesAtTheEndsOfE8M0) {
  OnEveryTarget([] {
    KvScales scales;
    scales.dtype = DType::kE8M0;
    const auto code = [&](float amax) {
      return int{Write({amax}, DType::kI8, KvFormat::kPlain, scales, true).scale[0]};
    };
    EXPECT_EQ(code(0.0f), 0);
    EXPECT_EQ(code(1e-45f), 0);
    EXPECT_EQ(code(127 * 0x1p-126f), 1);
    EXPECT_EQ(code(127 * 0x1p-100f), 27);
    EXPECT_EQ(code(std::nextafter(127 * 0x1p-100f, 1.0f)), 28);
    EXPECT_EQ(code(std::numeric_limits<float>::max()), 127 + 122);
    scales.divisor = 1e30f;  // beyond 2^127
    EXPECT_EQ(code(1e12f), 255);
    scales.divisor = 256.0f;  // max / 127 * 256 is infinite
    EXPECT_EQ(code(std::numeric_limits<float>::max()), 255);
    EXPECT_EQ(code(std::numeric_limits<float>::max() / 3), 254);
  });
}

// Blocks whose result the references leave open are the same on every target, and zeros or NaN.
TEST(WriteKvValues, BlocksOfNaNInfinityAndNearlyNothing) {
  constexpr KvFormat kFormats[] = {KvFormat::kQ8_0, KvFormat::kQ4_0, KvFormat::kQ4_1,
                                   KvFormat::kQ5_0, KvFormat::kQ5_1, KvFormat::kIQ4NL};
  const auto half = [](const Row& row, size_t at) {
    const uint32_t code = row.bytes[at] | static_cast<uint32_t>(row.bytes[at + 1]) << 8;
    return DecodeCode(DType::kF16, code);
  };
  for (const KvFormat format : kFormats) {
    for (const float special : {kNaN, -kNaN, kInf, -kInf, 1e-45f, -1e-45f, 0x1p-126f, 1e-16f}) {
      SCOPED_TRACE(testing::Message() << Name(format) << " with " << special);
      std::vector<float> x(32, std::fabs(special) < 1 ? 0.0f : 1.0f);
      x[19] = special;
      std::vector<uint8_t> first;
      OnEveryTarget([&] {
        const Row row = Write(x, DType::kU8, format);
        if (std::fabs(special) < 1) {
          EXPECT_EQ(half(row, 0), 0);
        } else {
          EXPECT_FALSE(std::isfinite(half(row, 0)));
        }
        if (std::isnan(special)) {
          EXPECT_TRUE(std::isnan(half(row, 0)));
        }
        if (first.empty()) first = row.bytes;
        EXPECT_EQ(row.bytes, first);
      });
    }
    // Zeros of both signs.
    for (const size_t negative : {size_t{0}, size_t{5}, size_t{31}}) {
      std::vector<float> x(32, 0.0f);
      x[negative] = -0.0f;
      std::vector<uint8_t> first;
      OnEveryTarget([&] {
        const Row row = Write(x, DType::kU8, format);
        if (first.empty()) first = row.bytes;
        EXPECT_EQ(row.bytes, first) << Name(format) << " " << negative;
      });
    }
  }
}

// Blocks as the references have them where codes are decided by the last bit: multiples of the
// scale and their halves, and their neighbours.
TEST(WriteKvValues, BlocksAtTheBoundariesOfCodes) {
  constexpr KvFormat kFormats[] = {KvFormat::kQ8_0, KvFormat::kQ4_0, KvFormat::kQ4_1,
                                   KvFormat::kQ5_0, KvFormat::kQ5_1, KvFormat::kIQ4NL};
  OnEveryTarget([&] {
    for (const KvFormat format : kFormats) {
      for (int variant = 0; variant < 300; ++variant) {
        const float unit = 0.01f * static_cast<float>(1 + variant % 37);
        std::vector<float> x;
        for (int i = 0; i < 32; ++i) {
          const auto step = static_cast<float>((i * 7 + variant) % 41 - 20) / 2;
          float value = unit * step;
          if (variant % 3 == 1) value = std::nextafter(value, kInf);
          if (variant % 3 == 2) value = std::nextafter(value, -kInf);
          x.push_back(value);
        }
        std::vector<uint8_t> expected;
        AppendBlock(format, x.data(), &expected);
        ASSERT_EQ(Write(x, DType::kU8, format).bytes, expected) << Name(format) << " " << variant;
      }
    }
  });
}

}  // namespace
}  // namespace riffle::test
