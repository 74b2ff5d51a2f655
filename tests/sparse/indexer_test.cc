// IndexerLogits against sums in double, and its bits against each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "riffle/error.h"
#include "riffle/indexer.h"
#include "testing/indexer_case.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

const std::vector<DType> kQDTypes = {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3,
                                     DType::kI8};

// "" where every score is within its bound and columns that are not seen are -inf.
std::string Check(const IndexerCase& test, const std::vector<float>& logits) {
  const int64_t cols = test.cols();
  for (int64_t token = 0; token < test.tokens(); ++token) {
    for (int64_t key = 0; key < cols; ++key) {
      const float got = logits[static_cast<size_t>(token * cols + key)];
      if (key >= test.Visible(token)) {
        if (!(got == -INFINITY)) {
          return "column " + std::to_string(key) + " of token " + std::to_string(token) + " is " +
                 std::to_string(got) + ", not -inf";
        }
        continue;
      }
      double bound = 0;
      const double want = test.Score(token, key, &bound);
      const bool right = std::isnan(want)   ? std::isnan(got)
                         : std::isinf(want) ? got == want
                                            : std::isfinite(got) && std::fabs(got - want) <= bound;
      if (!right) {
        return "token " + std::to_string(token) + " key " + std::to_string(key) + ": " +
               std::to_string(got) + ", not " + std::to_string(want) + " within " +
               std::to_string(bound);
      }
    }
  }
  return "";
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(IndexerLogits, ByHand) {
  // One query of two heads at position 2; keys 1, 2, 3 times the unit vector.
  std::vector<float> q(64), keys(3 * 32);
  q[0] = 1;
  q[32] = -1;
  for (size_t i = 0; i < 3; ++i) {
    keys[i * 32] = static_cast<float>(i) - 1;
  }
  const float weights[] = {10, 3};
  const std::vector<int32_t> lens = {3}, table = {0};
  std::vector<float> out(3);
  PagedBatch batch;
  batch.kv_lens = lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = 1;
  const HeadsView view{q.data(), DType::kF32, 1, 2, 32, 64, 32};
  const IndexKeys pool{keys.data(), DType::kF32, 1, 3, 32, 96, 32};
  IndexerLogits(view, {weights, 2}, pool, batch, {out.data(), 3, 3});
  EXPECT_EQ(out, (std::vector<float>{3, 0, 10}));
  IndexerLogits(view, {weights, 2}, pool, batch, {out.data(), 3, 3},
                {.activation = IndexActivation::kNone});
  EXPECT_EQ(out, (std::vector<float>{-7, 0, 7}));
  IndexerLogits(view, {}, pool, batch, {out.data(), 3, 3}, {.ratio = 2});
  EXPECT_EQ(out, (std::vector<float>{1, -INFINITY, -INFINITY}));
}

TEST(IndexerLogits, EveryFormat) {
  OnEveryTarget([](const std::string& target) {
    uint64_t seed = 0;
    for (const DType q : kQDTypes) {
      for (const DType keys : kQDTypes) {
        IndexerSpec spec;
        spec.q_dtype = q;
        spec.key_dtype = keys;
        spec.seed = ++seed;
        spec.heads = 1 + static_cast<int>(seed * 7 % 20);
        spec.head_dim = seed % 2 != 0 ? 48 : 64;
        spec.page_size = 1 + static_cast<int>(seed * 5 % 23);
        spec.weights = seed % 3 != 0;
        spec.scales = seed % 4 != 0;
        spec.activation = seed % 5 == 0 ? IndexActivation::kNone : IndexActivation::kRelu;
        spec.q_lens = {1, 3, 0, 20, 2, 5};
        spec.kv_lens = {70, 3, 9, 133, 0, 2};
        const IndexerCase test(spec);
        ASSERT_EQ(Check(test, test.Logits(&PoolOf(2))), "") << target << " " << Describe(spec);
      }
    }
  });
}

TEST(IndexerLogits, DeepGemmPages) {
  OnEveryTarget([](const std::string& target) {
    for (const DType q : kQDTypes) {
      IndexerSpec spec;
      spec.q_dtype = q;
      spec.key_dtype = DType::kE4M3;
      spec.format = IndexKeyFormat::kDeepGemm;
      spec.heads = 9;
      spec.head_dim = 128;
      spec.page_size = q == DType::kF32 ? 3 : 64;
      spec.q_lens = {2, 2};
      spec.kv_lens = {200, 64};
      const IndexerCase test(spec);
      ASSERT_EQ(Check(test, test.Logits()), "") << target << " " << Describe(spec);
    }
  });
}

TEST(IndexerLogits, ShapesAndRatios) {
  OnEveryTarget([](const std::string& target) {
    uint64_t seed = 100;
    for (const DType keys : {DType::kF32, DType::kBF16, DType::kI8}) {
      for (const int dim : {32, 128, 256}) {
        for (const int64_t ratio : {1, 4, 128}) {
          IndexerSpec spec;
          spec.q_dtype = keys;
          spec.key_dtype = keys;
          spec.head_dim = dim;
          spec.heads = ratio == 4 ? 128 : 13;
          spec.ratio = ratio;
          spec.seed = ++seed;
          spec.q_lens = {3, 2, 7};
          spec.kv_lens = {static_cast<int>(65 * ratio), static_cast<int>(4 * ratio - 1),
                          static_cast<int>(ratio)};
          const IndexerCase test(spec);
          ASSERT_EQ(Check(test, test.Logits()), "") << target << " " << Describe(spec);
        }
      }
    }
  });
}

// NaN, infinities, and every code of e4m3 and int8.
TEST(IndexerLogits, SpecialElements) {
  OnEveryTarget([](const std::string& target) {
    for (const DType keys : kQDTypes) {
      IndexerSpec spec;
      spec.q_dtype = keys == DType::kI8 ? DType::kI8 : DType::kBF16;
      spec.key_dtype = keys;
      spec.specials = true;
      spec.q_lens = std::vector<int>{4};
      spec.kv_lens = std::vector<int>{500};
      spec.heads = 3;
      const IndexerCase test(spec);
      ASSERT_EQ(Check(test, test.Logits()), "") << target << " " << Describe(spec);
    }
  });
}

TEST(IndexerLogits, EveryE4M3Code) {
  OnEveryTarget([](const std::string& target) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      // Key c holds code c alone: its score is the code's value.
      std::vector<uint8_t> keys(256 * 32);
      for (size_t c = 0; c < 256; ++c) {
        keys[c * 32 + c % 32] = static_cast<uint8_t>(c);
      }
      std::vector<uint8_t> q(32 * SizeOf(dtype));
      for (size_t i = 0; i < 32; ++i) {
        Store(dtype, Encode(dtype, 1.0f), q.data() + i * SizeOf(dtype));
      }
      std::vector<float> out(256);
      const std::vector<int32_t> starts = {0}, ends = {256};
      IndexerLogits({q.data(), dtype, 1, 1, 32, 32, 32}, {},
                    {keys.data(), DType::kE4M3, 1, 256, 32, 256 * 32, 32}, starts, ends,
                    {out.data(), 256, 256}, {.activation = IndexActivation::kNone});
      for (int c = 0; c < 256; ++c) {
        const int e = c >> 3 & 15;
        const float value = (c & 127) == 127 ? NAN
                            : e == 0         ? std::ldexp(float(c & 7), -9)
                                             : std::ldexp(1 + float(c & 7) / 8, e - 7);
        const float want = (c & 128) != 0 ? -value : value;
        const float got = out[static_cast<size_t>(c)];
        if (std::isnan(want)) {
          uint32_t bits;
          std::memcpy(&bits, &got, 4);
          EXPECT_EQ(bits, 0x7fc00000u) << target << " code " << c;
        } else {
          EXPECT_EQ(got, want) << target << " code " << c;
        }
      }
    }
  });
}

// The bits that the header promises, on every target.
TEST(IndexerLogits, Int8IsExact) {
  for (const bool relu : {true, false}) {
    for (const int dim : {32, 128, 256}) {
      IndexerSpec spec;
      spec.q_dtype = spec.key_dtype = DType::kI8;
      spec.activation = relu ? IndexActivation::kRelu : IndexActivation::kNone;
      spec.heads = 37;
      spec.head_dim = dim;
      spec.specials = true;  // -128 too
      spec.q_lens = {5, 20};
      spec.kv_lens = {301, 150};
      const IndexerCase test(spec);
      std::vector<float> want(static_cast<size_t>(test.tokens() * test.cols()), -INFINITY);
      for (int64_t token = 0; token < test.tokens(); ++token) {
        for (int64_t key = 0; key < test.Visible(token); ++key) {
          want[static_cast<size_t>(token * test.cols() + key)] = test.ExactScore(token, key);
        }
      }
      OnEveryTarget([&](const std::string& target) {
        EXPECT_TRUE(SameBits(test.Logits(), want)) << target << " " << Describe(spec);
      });
    }
  }
}

// q of other dtypes is rounded to int8 by the same arithmetic everywhere.
TEST(IndexerLogits, Int8KeysGiveTheSameBitsOnEveryTarget) {
  for (const DType q : kQDTypes) {
    IndexerSpec spec;
    spec.q_dtype = q;
    spec.key_dtype = DType::kI8;
    spec.heads = 64;
    spec.head_dim = 128;
    spec.specials = q != DType::kI8;
    spec.q_lens = std::vector<int>{3};
    spec.kv_lens = std::vector<int>{300};
    const IndexerCase test(spec);
    const std::vector<float> want = test.Logits();
    OnEveryTarget([&](const std::string& target) {
      EXPECT_TRUE(SameBits(test.Logits(), want)) << target << " " << Describe(spec);
    });
  }
}

// A query's scores do not depend on what else is in the call, on threads or on pages.
TEST(IndexerLogits, Invariance) {
  OnEveryTarget([](const std::string& target) {
    for (const DType keys : {DType::kF32, DType::kBF16, DType::kE4M3, DType::kI8}) {
      IndexerSpec spec;
      spec.q_dtype = keys == DType::kF32 ? keys : DType::kBF16;
      spec.key_dtype = keys;
      spec.heads = 11;
      spec.q_lens = std::vector<int>{40};
      spec.kv_lens = std::vector<int>{3000};
      const IndexerCase test(spec);
      const std::vector<float> want = test.Logits(&PoolOf(1));
      for (const int threads : {2, 3, 8}) {
        EXPECT_TRUE(SameBits(test.Logits(&PoolOf(threads)), want)) << target << Describe(spec);
      }
      // One query alone, over the same keys.
      for (const int64_t token : {0, 17, 39}) {
        HeadsView q = test.q();
        const auto element = static_cast<int64_t>(SizeOf(q.dtype));
        q.data = static_cast<const uint8_t*>(q.data) + token * q.token_stride * element;
        q.tokens = 1;
        const std::vector<int32_t> lens = {static_cast<int32_t>(test.Visible(token))};
        PagedBatch batch = test.batch();
        batch.cu_q_lens = {};
        batch.kv_lens = lens;
        std::vector<float> one(static_cast<size_t>(lens[0]));
        IndexerLogits(q, {test.weights().data + token * 11, 11}, test.keys(), batch,
                      {one.data(), lens[0], lens[0]}, test.options(&PoolOf(2)));
        EXPECT_EQ(
            std::memcmp(one.data(), want.data() + token * test.cols(), one.size() * sizeof(float)),
            0)
            << target << " " << Describe(spec);
      }
    }
  });
}

// Ranges over a matrix of keys; columns outside are -inf, memory between rows stays.
TEST(IndexerLogits, Ranges) {
  for (const DType keys : {DType::kBF16, DType::kI8}) {
    IndexerSpec spec;
    spec.q_dtype = spec.key_dtype = keys;
    spec.page_size = 400;
    spec.q_lens = std::vector<int>{19};
    spec.kv_lens = std::vector<int>{400};
    const IndexerCase test(spec);
    IndexKeys one = test.keys();  // the page of the sequence
    const int32_t page = test.Slot(0, 0) / 400;
    one.data = static_cast<const uint8_t*>(one.data) +
               page * one.page_stride * static_cast<int64_t>(SizeOf(keys));
    if (one.scales.data != nullptr) {
      one.scales.data += page * 400;
    }
    one.num_pages = 1;
    std::vector<int32_t> starts, ends;
    for (int i = 0; i < 19; ++i) {
      starts.push_back(i * 20);
      ends.push_back(i % 5 == 4 ? i * 20 - 3 : std::min(400, i * 20 + i * 15));
    }
    constexpr int64_t kStride = 410;
    std::vector<float> out(19 * kStride, 5.0f);
    IndexerLogits(test.q(), test.weights(), one, starts, ends, {out.data(), 403, kStride},
                  {.pool = &PoolOf(2)});
    for (int64_t t = 0; t < 19; ++t) {
      for (int64_t c = 0; c < kStride; ++c) {
        const float got = out[static_cast<size_t>(t * kStride + c)];
        const auto row = static_cast<size_t>(t);
        if (c >= 403) {
          ASSERT_EQ(got, 5.0f);
        } else if (c < starts[row] || c >= ends[row]) {
          ASSERT_EQ(got, -INFINITY) << t << " " << c;
        } else {
          double bound = 0;
          const double want = test.Score(t, c, &bound);
          ASSERT_LE(std::fabs(got - want), bound) << t << " " << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace riffle::test
