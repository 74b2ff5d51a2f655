// WriteSparseRows against rows made in double, and against what SparseAttention reads.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "riffle/error.h"
#include "riffle/sparse_attention.h"
#include "testing/kv_codes.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/sparse_attention_reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

// What a row shall be: its bytes, and of kMla584 its scales.
struct Coded {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> scales;
};

// The e4m3 code nearest to x; in the middle of two, the even one.
uint8_t NearestCode(double x) {
  static const std::vector<double> magnitudes = [] {
    std::vector<double> all;
    for (int code = 0; code <= 126; ++code) {
      all.push_back(DecodeFloat8(DType::kE4M3, static_cast<uint8_t>(code)));
    }
    return all;
  }();
  const auto distance = [&](int code) {
    return std::abs(magnitudes[static_cast<size_t>(code)] - std::abs(x));
  };
  int best = 0;
  for (int code = 1; code <= 126; ++code) {
    if (distance(code) < distance(best) || (distance(code) == distance(best) && code % 2 == 0)) {
      best = code;
    }
  }
  return static_cast<uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

Coded Reference(SparseRowFormat format, const float* x, bool power_of_two) {
  const bool v4 = format == SparseRowFormat::kMla584;
  const int codes = v4 ? 448 : 512, group = v4 ? 64 : 128;
  Coded row;
  row.bytes.resize(static_cast<size_t>(codes));
  for (int begin = 0; begin < codes; begin += group) {
    float largest = 0;
    bool finite = true;
    for (int i = begin; i < begin + group; ++i) {
      finite = finite && std::isfinite(x[i]);
      largest = std::max(largest, std::abs(x[i]));
    }
    float scale = std::max(largest, 1e-4f) / 448.0f;
    if (power_of_two || v4) {
      scale = static_cast<float>(std::exp2(std::ceil(std::log2(double{scale}))));
    }
    for (int i = begin; i < begin + group && finite; ++i) {
      row.bytes[static_cast<size_t>(i)] = NearestCode(double{x[i] / scale});
    }
    if (v4) {
      row.scales.push_back(
          finite ? static_cast<uint8_t>(std::lround(std::log2(double{scale})) + 127) : 255);
    } else {
      scale = finite ? scale : std::bit_cast<float>(0x7fc00000u);
      const auto at = reinterpret_cast<const uint8_t*>(&scale);
      row.scales.insert(row.scales.end(), at, at + 4);
    }
  }
  if (v4) {
    row.scales.push_back(0);
  } else {
    row.bytes.insert(row.bytes.end(), row.scales.begin(), row.scales.end());
  }
  for (int i = 0; i < 64; ++i) {
    const auto bits = std::bit_cast<uint32_t>(x[codes + i]);
    const uint32_t bf16 = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    row.bytes.push_back(static_cast<uint8_t>(bf16));
    row.bytes.push_back(static_cast<uint8_t>(bf16 >> 8));
  }
  return row;
}

struct Case {
  SparseRowFormat format;
  DType dtype = DType::kF32;
  int64_t tokens = 200;
  std::vector<uint8_t> x = {};
  std::vector<std::vector<float>> rows = {};  // what x holds
  std::vector<int64_t> slots = {};

  static constexpr int64_t kSlots = 90, kPage = 7;
  int64_t dim() const { return format == SparseRowFormat::kMla584 ? 512 : 576; }
  int64_t row() const { return format == SparseRowFormat::kMla584 ? 576 : 680; }
  int64_t page() const { return kPage * (format == SparseRowFormat::kMla584 ? 584 : 680) + 40; }
  size_t bytes() const { return static_cast<size_t>((kSlots + kPage - 1) / kPage * page()); }

  void Make(Rng& rng) {
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    x.resize(static_cast<size_t>(tokens * (dim() + 3) * element));
    for (int64_t t = 0; t < tokens; ++t) {
      slots.push_back(rng.OneIn(9) ? -1 : static_cast<int64_t>(rng.Below(kSlots)));
      const double size = std::exp2(static_cast<double>(rng.Between(-14, 12)));
      rows.emplace_back();
      for (int64_t i = 0; i < dim(); ++i) {
        const double value = rng.OneIn(20) ? 0 : (2 * rng.Unit() - 1) * size;
        uint8_t* at = x.data() + (t * (dim() + 3) + i) * element;
        Store(dtype, Encode(dtype, static_cast<float>(value)), at);
        rows.back().push_back(static_cast<float>(Decode(dtype, at)));
      }
    }
  }
  MatrixView view() const { return {x.data(), dtype, tokens, dim(), dim() + 3}; }
  SparseRowsOut pool(std::vector<uint8_t>& memory) const {
    return {memory.data(), kSlots, row(), kPage, page(), format};
  }
  // The bytes of a pool after the writes.
  std::vector<uint8_t> Want(bool power_of_two) const {
    std::vector<uint8_t> memory(bytes(), 0xcd);
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t slot = slots[static_cast<size_t>(t)];
      if (slot < 0) continue;
      const Coded coded = Reference(format, rows[static_cast<size_t>(t)].data(), power_of_two);
      uint8_t* at = memory.data() + slot / kPage * page();
      std::copy(coded.bytes.begin(), coded.bytes.end(), at + slot % kPage * row());
      if (format == SparseRowFormat::kMla584) {
        std::copy(coded.scales.begin(), coded.scales.end(), at + kPage * 576 + slot % kPage * 8);
      }
    }
    return memory;
  }
};

constexpr SparseRowFormat kFormats[] = {SparseRowFormat::kMla656, SparseRowFormat::kMla584};

// Bytes between rows and behind pages stay; -1 is skipped; the later of equal slots stays.
TEST(WriteSparseRows, AreThoseOfTheReference) {
  OnEveryTarget([](const std::string& target) {
    uint64_t seed = 0;
    for (const SparseRowFormat format : kFormats) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const bool power_of_two : {true, false}) {
          Rng rng(++seed);
          Case test{format, dtype};
          test.Make(rng);
          const std::vector<uint8_t> want = test.Want(power_of_two);
          for (const int threads : {1, 3}) {
            std::vector<uint8_t> memory(test.bytes(), 0xcd);
            WriteSparseRowsOptions options;
            options.power_of_two_scales = power_of_two;
            options.pool = &PoolOf(threads);
            WriteSparseRows(test.view(), test.slots, test.pool(memory), options);
            EXPECT_EQ(memory, want) << target << " " << Name(format) << " " << Name(dtype);
          }
        }
      }
    }
  });
}

// Every boundary between two codes, and both neighbours of it.
TEST(WriteSparseRows, RoundsToTheNearest) {
  OnEveryTarget([](const std::string& target) {
    for (const SparseRowFormat format : kFormats) {
      const int64_t dim = format == SparseRowFormat::kMla584 ? 512 : 576;
      std::vector<float> x(static_cast<size_t>(126 * dim));
      for (int code = 0; code < 126; ++code) {
        const float low =
            static_cast<float>(DecodeFloat8(DType::kE4M3, static_cast<uint8_t>(code)));
        const float high =
            static_cast<float>(DecodeFloat8(DType::kE4M3, static_cast<uint8_t>(code + 1)));
        const float middle = (low + high) / 2;
        const float near[] = {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 500.0f),
                              low};
        for (int64_t i = 0; i < dim; ++i) {
          x[static_cast<size_t>(code * dim + i)] = i % 64 == 0  ? 448.0f  // so that the scale is 1
                                                   : i % 2 == 0 ? near[i / 2 % 4]
                                                                : -near[i / 2 % 4];
        }
      }
      std::vector<int32_t> slots(126);
      for (int i = 0; i < 126; ++i) slots[static_cast<size_t>(i)] = i;
      const bool v4 = format == SparseRowFormat::kMla584;
      std::vector<uint8_t> memory(126 * 656);
      WriteSparseRows({x.data(), DType::kF32, 126, dim, dim}, slots,
                      {memory.data(), 126, 656, v4 ? 126 : 0, 126 * 584, format});
      for (int64_t r = 0; r < 126; ++r) {
        const Coded want = Reference(format, x.data() + r * dim, true);
        EXPECT_TRUE(
            std::equal(want.bytes.begin(), want.bytes.end(), memory.begin() + r * (v4 ? 576 : 656)))
            << target << " " << Name(format) << " " << r;
      }
    }
  });
}

// What is read is what was written, and what is not finite makes its row NaN.
TEST(WriteSparseRows, AreRead) {
  for (const SparseRowFormat format : kFormats) {
    Rng rng(9);
    Case test{format};
    test.tokens = 3;
    test.Make(rng);
    test.slots = {4, 11, 2};
    const double bad[] = {NAN, -INFINITY};
    for (const double value : bad) {
      std::vector<uint8_t> memory(test.bytes());
      Case broken = test;
      const auto number = static_cast<float>(value);
      std::memcpy(broken.x.data() + (test.dim() + 3 + 70) * 4, &number, 4);
      WriteSparseRows(broken.view(), broken.slots, broken.pool(memory));
      std::vector<float> q(static_cast<size_t>(test.dim()), 0.0f), out(q.size());
      for (size_t i = 0; i < 3; ++i) {
        const auto slot = static_cast<int32_t>(test.slots[i]);
        const SparseScope scope{broken.pool(memory), &slot, 1, 1};
        SparseAttention({q.data(), DType::kF32, 1, 1, test.dim(), 0, 0}, std::span(&scope, 1),
                        {out.data(), 0, 0});
        for (size_t j = 0; j < out.size(); ++j) {
          if (i == 1) {
            ASSERT_TRUE(std::isnan(out[j])) << Name(format) << " " << j;
          } else {  // half of a last place of e4m3, of the largest magnitude of its group or of
                    // bf16
            const float x = test.rows[i][j];
            const float largest = std::abs(
                *std::max_element(test.rows[i].begin(), test.rows[i].end(),
                                  [](float a, float b) { return std::abs(a) < std::abs(b); }));
            ASSERT_NEAR(out[j], x, std::abs(x) / 16 + largest * 0x1p-16f) << Name(format) << j;
          }
        }
      }
    }
  }
}

TEST(WriteSparseRows, Errors) {
  for (const SparseRowFormat format : kFormats) {
    Rng rng(4);
    Case test{format};
    test.tokens = 5;
    test.Make(rng);
    const auto refused = [&](const auto& spoil, Code code, const std::string& text) {
      std::vector<uint8_t> memory(test.bytes(), 0xcd);
      MatrixView x = test.view();
      SparseRowsOut rows = test.pool(memory);
      std::vector<int64_t> slots = test.slots;
      spoil(x, rows, slots);
      try {
        WriteSparseRows(x, slots, rows);
        ADD_FAILURE() << "not refused: " << text;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), code) << error.what();
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
      }
      EXPECT_EQ(memory, std::vector<uint8_t>(test.bytes(), 0xcd));
    };
#define SPOIL(code)                    \
  [&](auto& x, auto& r, auto& slots) { \
    (void)x, (void)r, (void)slots;     \
    code;                              \
  }
    refused(SPOIL(x.dtype = DType::kI8), Code::kBadDType, "x is int8");
    refused(SPOIL(x.cols = 64), Code::kBadShape, "x.cols = 64");
    refused(SPOIL(x.data = nullptr), Code::kBadShape, "x.data is null");
    refused(SPOIL(slots.pop_back()), Code::kBadShape, "the number of slots");
    refused(SPOIL(slots[3] = 90), Code::kBadPage, "slots[3] = 90");
    refused(SPOIL(slots[4] = -2), Code::kBadPage, "slots[4] = -2");
    refused(SPOIL(r.format = SparseRowFormat::kPlain), Code::kBadOption, "rows.format = plain");
    refused(SPOIL(r.slots = -1), Code::kBadShape, "rows.slots = -1");
    refused(SPOIL(r.data = nullptr), Code::kBadShape, "rows.data is null");
    refused(SPOIL(r.page_size = -1), Code::kBadShape, "rows.page_size = -1");
    refused(SPOIL(r.page_stride = 100),
            format == SparseRowFormat::kMla584 ? Code::kBadShape : Code::kOverlap, "rows");
    refused(SPOIL(x.data = r.data), Code::kOverlap, "rows");
#undef SPOIL
  }
}

}  // namespace
}  // namespace riffle::test
