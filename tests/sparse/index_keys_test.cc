// Writing index keys, the Hadamard transform, and slots of positions.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "riffle/error.h"
#include "riffle/indexer.h"
#include "testing/distributions.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

std::vector<float> RandomRows(int64_t rows, int64_t cols, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> x;
  for (int64_t i = 0; i < rows * cols; ++i) {
    x.push_back(static_cast<float>((rng.Unit() - 0.5) * std::exp2(rng.Between(-3, 3))));
  }
  return x;
}

// Row of H x in double, by the definition: H[i][j] = (-1)^popcount(i & j) / sqrt(n).
double HadamardAt(const float* x, int64_t n, int64_t i) {
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    sum += std::popcount(static_cast<uint64_t>(i & j)) % 2 == 0 ? x[j] : -double{x[j]};
  }
  return sum / std::sqrt(static_cast<double>(n));
}

TEST(Hadamard, MatchesTheMatrix) {
  std::vector<std::vector<float>> first;
  OnEveryTarget([&](const std::string& target) {
    size_t at = 0;
    for (const int64_t n : {1, 2, 8, 64, 128, 1024}) {
      const std::vector<float> x = RandomRows(5, n, 3);
      std::vector<float> y(x.size());
      Hadamard(View(x.data(), 5, n), {y.data(), n});
      for (int64_t r = 0; r < 5; ++r) {
        for (int64_t i = 0; i < n; ++i) {
          ASSERT_NEAR(y[static_cast<size_t>(r * n + i)], HadamardAt(x.data() + r * n, n, i),
                      1e-5 * std::sqrt(static_cast<double>(n)))
              << target << " n " << n;
        }
      }
      if (first.size() <= at) {
        first.push_back(y);
      }
      EXPECT_EQ(y, first[at++]) << "other bits on " << target;
      std::vector<float> in_place = x;
      Hadamard(View(in_place.data(), 5, n), {in_place.data(), n});
      EXPECT_EQ(in_place, y);
    }
  });
}

TEST(Hadamard, SixteenBits) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const std::vector<float> x = RandomRows(2, 64, 4);
    std::vector<uint16_t> rows(x.size()), out(x.size());
    std::vector<float> exact(x.size()), wide(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      rows[i] = static_cast<uint16_t>(Encode(dtype, x[i]));
      exact[i] = static_cast<float>(Decode(dtype, &rows[i]));
    }
    Hadamard(View(rows.data(), dtype, 2, 64), {out.data(), 64});
    Hadamard(View(exact.data(), 2, 64), {wide.data(), 64});
    for (size_t i = 0; i < x.size(); ++i) {
      const double unit = dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
      EXPECT_NEAR(Decode(dtype, &out[i]), wide[i], std::fabs(wide[i]) * unit + 1e-7);
    }
  }
}

double ValueOfE4M3(int code) {
  const int e = code >> 3 & 15;
  const double value = e == 0 ? std::ldexp(code & 7, -9) : std::ldexp(1 + (code & 7) / 8.0, e - 7);
  return (code & 128) != 0 ? -value : value;
}

TEST(WriteIndexKeys, CodesAreNearest) {
  OnEveryTarget([](const std::string& target) {
    const std::vector<float> x = RandomRows(40, 64, 9);
    std::vector<int32_t> slots;
    for (int32_t i = 0; i < 40; ++i) {
      slots.push_back(i % 7 == 3 ? -1 : 59 - i);
    }
    for (const bool power : {true, false}) {
      for (const DType dtype : {DType::kI8, DType::kE4M3}) {
        std::vector<uint8_t> codes(60 * 64, 0xee);
        std::vector<float> scales(60, 7.0f);
        WriteIndexKeys(View(x.data(), 40, 64), slots,
                       {codes.data(), dtype, 6, 10, 64, 640, 64, {scales.data(), 10, 1}},
                       {.hadamard = false, .power_of_two_scales = power});
        for (size_t i = 0; i < 40; ++i) {
          const float* row = x.data() + i * 64;
          if (slots[i] < 0) continue;
          const auto slot = static_cast<size_t>(slots[i]);
          double max = 0;
          for (size_t j = 0; j < 64; ++j) max = std::max(max, std::fabs(double{row[j]}));
          const double scale = scales[slot];
          if (dtype == DType::kI8) {
            EXPECT_NEAR(scale, max / 127, max * 1e-7);
          } else if (power) {
            EXPECT_EQ(scale, std::exp2(std::ceil(std::log2(max / 448)))) << target;
          } else {
            EXPECT_NEAR(scale, max / 448, max * 1e-7);
          }
          for (size_t j = 0; j < 64; ++j) {
            const uint8_t code = codes[slot * 64 + j];
            const double value =
                (dtype == DType::kI8 ? static_cast<int8_t>(code) : ValueOfE4M3(code)) * scale;
            double best = INFINITY;  // of any code
            for (int c = 0; c < 256; ++c) {
              if (dtype == DType::kE4M3 && (c & 127) == 127) continue;
              const double other =
                  (dtype == DType::kI8 ? static_cast<int8_t>(c) : ValueOfE4M3(c)) * scale;
              best = std::min(best, std::fabs(other - row[j]));
            }
            EXPECT_LE(std::fabs(value - row[j]), best + max * 1e-6) << target << " " << row[j];
          }
        }
        EXPECT_EQ(scales[59 - 3], 7.0f);  // skipped
        EXPECT_EQ(codes[(59 - 3) * 64], 0xee);
        EXPECT_EQ(codes[0], 0xee);
      }
    }
  });
}

// A dot product of what is written is that of what was given.
TEST(WriteIndexKeys, KeepsDotProducts) {
  const std::vector<float> k = RandomRows(100, 128, 21);
  const std::vector<float> q = RandomRows(1, 128, 22);
  std::vector<float> rotated(128);
  Hadamard(View(q.data(), 1, 128), {rotated.data(), 128});
  std::vector<int64_t> slots(100);
  for (size_t i = 0; i < 100; ++i) slots[i] = static_cast<int64_t>(i);
  const std::vector<int32_t> lens = {100}, table = {0};
  PagedBatch batch;
  batch.kv_lens = lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = 1;
  double norm = 0;
  for (const float x : q) norm += double{x} * x;
  for (const auto& [dtype, error] :
       {std::pair{DType::kF32, 1e-6}, {DType::kI8, 0.03}, {DType::kE4M3, 0.1}, {DType::kU8, 0.1}}) {
    std::vector<uint8_t> bytes(100 * 132 * 4);
    std::vector<float> scales(100);
    IndexKeysOut out{bytes.data(), dtype, 1, 100, 128, 12800, 128, {}};
    IndexKeys in{bytes.data(), dtype, 1, 100, 128, 12800, 128, {}};
    if (dtype == DType::kU8) {
      out.format = in.format = IndexKeyFormat::kDeepGemm;
      out.page_stride = in.page_stride = 13200;
    } else if (dtype != DType::kF32) {
      out.scales = {scales.data(), 100, 1};
      in.scales = {scales.data(), 100, 1};
    }
    WriteIndexKeys(View(k.data(), 100, 128), slots, out);
    std::vector<float> got(100);
    IndexerLogits({rotated.data(), DType::kF32, 1, 1, 128, 128, 128}, {}, in, batch,
                  {got.data(), 100, 100}, {.activation = IndexActivation::kNone});
    for (size_t i = 0; i < 100; ++i) {
      double want = 0;
      double size = 0;
      for (size_t j = 0; j < 128; ++j) {
        want += double{q[j]} * k[i * 128 + j];
        size += double{k[i * 128 + j]} * k[i * 128 + j];
      }
      EXPECT_NEAR(got[i], want, error * std::sqrt(size * norm)) << Name(dtype);
    }
  }
}

TEST(WriteIndexKeys, KeysThatAreNotFinite) {
  std::vector<float> x(32 * 3, 1.0f);
  x[5] = NAN;
  x[32 + 9] = INFINITY;
  std::vector<float> scales(3);
  std::vector<uint8_t> codes(96);
  const std::vector<int32_t> slots = {0, 1, 2};
  for (const DType dtype : {DType::kI8, DType::kE4M3}) {
    for (const bool hadamard : {true, false}) {
      WriteIndexKeys(View(x.data(), 3, 32), slots,
                     {codes.data(), dtype, 1, 3, 32, 96, 32, {scales.data(), 3, 1}},
                     {.hadamard = hadamard});
      EXPECT_TRUE(std::isnan(scales[0]) && std::isnan(scales[1]) && scales[2] > 0);
    }
  }
}

// Of equal slots the later key stays, on any number of threads.
TEST(WriteIndexKeys, LaterKeyStays) {
  const std::vector<float> x = RandomRows(1000, 32, 5);
  std::vector<int32_t> slots(1000);
  for (size_t i = 0; i < 1000; ++i) slots[i] = static_cast<int32_t>(i * 7 % 90);
  std::vector<float> keys(90 * 32);
  WriteIndexKeys(View(x.data(), 1000, 32), slots, {keys.data(), DType::kF32, 9, 10, 32, 320, 32},
                 {.hadamard = false, .pool = &PoolOf(3)});
  for (size_t i = 910; i < 1000; ++i) {
    EXPECT_EQ(std::memcmp(&keys[static_cast<size_t>(slots[i]) * 32], &x[i * 32], 128), 0);
  }
}

TEST(PositionsToSlots, ByHand) {
  const std::vector<int32_t> positions = {0, 17, -1, 40, 99, 16};
  const std::vector<int64_t> table = {5, 2, -1, 9, 9, 1};
  std::vector<int32_t> slots(6);
  PositionsToSlots({positions.data(), 1, 6, 6}, {table.data(), 1, 3, 3, 16}, {}, {slots.data(), 6});
  EXPECT_EQ(slots, (std::vector<int32_t>{80, 33, -1, -1, -1, 32}));
  // Three tokens of two columns: the first of sequence 0, the others of sequence 2.
  const std::vector<int32_t> cu = {0, 1, 1, 3};
  const std::vector<int32_t> rows = {3, 1, 2};
  std::vector<int32_t> in_place = {1, 4, 0, 3, 2, -9};
  PositionsToSlots({in_place.data(), 3, 2, 2}, {rows.data(), 3, 1, 1, 4}, cu, {in_place.data(), 2});
  EXPECT_EQ(in_place, (std::vector<int32_t>{13, -1, 8, 11, 10, -1}));
}

}  // namespace
}  // namespace riffle::test
