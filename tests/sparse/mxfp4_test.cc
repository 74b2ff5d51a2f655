// Index keys in MXFP4: every code and scale, scores against double, selection, writing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "riffle/error.h"
#include "riffle/indexer.h"
#include "riffle/topk.h"
#include "testing/indexer_case.h"
#include "testing/reference.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr double kMagnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

double ValueOf(int code, int scale) {
  const double value = scale == 255 ? NAN : std::ldexp(kMagnitudes[code & 7], scale - 127);
  return code >= 8 ? -value : value;
}

// Scores of one page of keys for a query of ones or, at `element` >= 0, of that unit vector.
std::vector<float> Scores(const std::vector<uint8_t>& page, int keys, int dim, DType q_dtype,
                          int element) {
  std::vector<uint8_t> q(static_cast<size_t>(dim) * SizeOf(q_dtype));
  for (int i = 0; i < dim; ++i) {
    if (element < 0 || i == element) {
      Store(q_dtype, Encode(q_dtype, 1.0f), q.data() + static_cast<size_t>(i) * SizeOf(q_dtype));
    }
  }
  const std::vector<int32_t> lens = {keys}, table = {0};
  std::vector<float> out(static_cast<size_t>(keys));
  IndexKeys pool{page.data(), DType::kU8, 1, keys, dim, 0, 0};
  pool.page_stride = static_cast<int64_t>(page.size());
  pool.format = IndexKeyFormat::kMxFp4;
  IndexerLogits({q.data(), q_dtype, 1, 1, dim, dim, dim}, {}, pool, {{}, lens, table.data(), 1, 1},
                {out.data(), keys, keys}, {.activation = IndexActivation::kNone});
  return out;
}

TEST(MxFp4, EveryCodeAndScale) {
  OnEveryTarget([](const std::string& target) {
    for (int scale = 0; scale < 256; ++scale) {
      // Key c holds code c in element 32 + c, and nothing else.
      constexpr int kKeys = 16, kDim = 64;
      std::vector<uint8_t> page(kKeys * (kDim / 2 + 4));
      for (int c = 0; c < kKeys; ++c) {
        page[static_cast<size_t>(c * 32 + 16 + c / 2)] =
            static_cast<uint8_t>(c % 2 == 0 ? c : c << 4);
        page[static_cast<size_t>(kKeys * 32 + c * 4)] = 127;
        page[static_cast<size_t>(kKeys * 32 + c * 4 + 1)] = static_cast<uint8_t>(scale);
      }
      for (const DType q : {DType::kF32, DType::kBF16}) {
        const std::vector<float> got = Scores(page, kKeys, kDim, q, -1);
        for (int c = 0; c < kKeys; ++c) {
          const auto want = static_cast<float>(ValueOf(c, scale));
          const float score = got[static_cast<size_t>(c)];
          if (std::isnan(want)) {
            EXPECT_TRUE(std::isnan(score)) << target << " scale " << scale << " code " << c;
          } else if (q == DType::kBF16 && std::fabs(want) < 0x1p-126f) {
            EXPECT_TRUE(score == want || score == 0) << target << " scale " << scale;
          } else {
            EXPECT_EQ(score, want) << target << " scale " << scale << " code " << c;
          }
        }
      }
    }
  });
}

TEST(MxFp4, ScoresAndSelection) {
  OnEveryTarget([](const std::string& target) {
    uint64_t seed = 0;
    for (const DType q : {DType::kF32, DType::kBF16, DType::kF16, DType::kE4M3}) {
      for (const int dim : {32, 96, 128}) {
        for (const bool ties : {false, true}) {
          IndexerSpec spec;
          spec.q_dtype = q;
          spec.key_dtype = DType::kE4M3;
          spec.format = IndexKeyFormat::kMxFp4;
          spec.head_dim = dim;
          spec.heads = 5;
          spec.page_size = dim == 96 ? 3 : 64;
          spec.ties = ties;
          spec.specials = q == DType::kF32 && dim == 128;
          spec.seed = ++seed;
          spec.q_lens = {3, 2};
          spec.kv_lens = {200, 65};
          const IndexerCase test(spec);
          const std::vector<float> logits = test.Logits(&PoolOf(2));
          std::vector<int32_t> starts(5), ends, want(5 * 40), got(5 * 40);
          for (int64_t t = 0; t < test.tokens(); ++t) {
            ends.push_back(static_cast<int32_t>(test.Visible(t)));
            for (int64_t key = 0; key < test.Visible(t); ++key) {
              double bound = 0;
              const double exact = test.Score(t, key, &bound);
              const float score = logits[static_cast<size_t>(t * test.cols() + key)];
              const bool right = std::isnan(exact)   ? std::isnan(score)
                                 : std::isinf(exact) ? score == exact
                                                     : std::fabs(score - exact) <= bound;
              ASSERT_TRUE(right) << target << " " << Describe(spec) << ": " << score << ", not "
                                 << exact;
            }
          }
          TopKPerRow(View(logits.data(), 5, test.cols()), starts, ends, 40, {want.data(), 40},
                     {.index_order_if_short = true});
          IndexerTopK(test.q(), test.weights(), test.keys(), test.batch(), 40, {got.data(), 40},
                      {.pool = &PoolOf(3)});
          EXPECT_EQ(got, want) << target << " " << Describe(spec);
        }
      }
    }
  });
}

struct Written {
  std::vector<uint8_t> page;
  int code(int key, int i, int dim) const {
    const uint8_t byte = page[static_cast<size_t>(key * dim / 2 + i / 2)];
    return i % 2 == 0 ? byte & 15 : byte >> 4;
  }
};

Written Write(const std::vector<float>& x, int keys, int dim) {
  Written written;
  written.page.assign(static_cast<size_t>(keys * (dim / 2 + 4)), 0xee);
  std::vector<int32_t> slots(static_cast<size_t>(keys));
  for (int i = 0; i < keys; ++i) slots[static_cast<size_t>(i)] = i;
  IndexKeysOut out{written.page.data(), DType::kU8, 1, keys, dim};
  out.page_stride = static_cast<int64_t>(written.page.size());
  out.format = IndexKeyFormat::kMxFp4;
  WriteIndexKeys(View(x.data(), keys, dim), slots, out, {.hadamard = false});
  return written;
}

TEST(MxFp4, WritesTheNearestCodeTiesToEven) {
  // 6 fixes the scale at 1; half-way numbers go to the even code.
  const std::vector<std::pair<float, int>> by_hand = {
      {6, 7},      {0, 0},      {0.25f, 0}, {0.26f, 1}, {0.75f, 2}, {1.25f, 2}, {1.75f, 4},
      {2.5f, 4},   {3.5f, 6},   {5, 6},     {5.01f, 7}, {-0.5f, 9}, {-1, 10},   {-3, 13},
      {-0.25f, 8}, {-5.5f, 15}, {1.9f, 4},  {3.4f, 5},  {0.74f, 1}};
  std::vector<float> x(32);
  for (size_t i = 0; i < by_hand.size(); ++i) x[i] = by_hand[i].first;
  OnEveryTarget([&](const std::string& target) {
    const Written written = Write(x, 1, 32);
    EXPECT_EQ(written.page[16], 127) << target;
    EXPECT_EQ(written.page[17], 0) << "bytes behind the scales are cleared";
    for (size_t i = 0; i < by_hand.size(); ++i) {
      EXPECT_EQ(written.code(0, static_cast<int>(i), 32), by_hand[i].second)
          << target << " " << by_hand[i].first;
    }
  });
}

TEST(MxFp4, WritesScalesUpToAPowerOfTwo) {
  Rng rng(4);
  std::vector<float> x(50 * 128);
  for (float& value : x) {
    value = static_cast<float>((rng.Unit() - 0.5) * std::exp2(rng.Between(-30, 30)));
  }
  std::fill_n(x.begin(), 32, 0.0f);
  x[128 + 40] = NAN;
  x[2 * 128 + 70] = INFINITY;
  const Written written = Write(x, 50, 128);
  for (int key = 0; key < 50; ++key) {
    for (int block = 0; block < 4; ++block) {
      const float* from = x.data() + key * 128 + block * 32;
      double max = 0;
      bool finite = true;
      for (int i = 0; i < 32; ++i) {
        finite = finite && std::isfinite(from[i]);
        max = std::max(max, std::fabs(double{from[i]}));
      }
      const int scale = written.page[static_cast<size_t>(50 * 64 + key * 4 + block)];
      if (!finite) {
        EXPECT_EQ(scale, 255);
        continue;
      }
      EXPECT_EQ(scale, 127 + std::ceil(std::log2(std::max(max, 1e-4) / 6))) << max;
      for (int i = 0; i < 32; ++i) {
        const double got = ValueOf(written.code(key, block * 32 + i, 128), scale);
        double best = INFINITY;
        for (int c = 0; c < 16; ++c) best = std::min(best, std::fabs(ValueOf(c, scale) - from[i]));
        EXPECT_EQ(std::fabs(got - from[i]), best);
      }
    }
  }
  // A key that is not finite scores NaN.
  EXPECT_TRUE(std::isnan(Scores(written.page, 50, 128, DType::kF32, 0)[1]));
  EXPECT_TRUE(std::isnan(Scores(written.page, 50, 128, DType::kBF16, 0)[2]));
}

TEST(MxFp4, Errors) {
  std::vector<uint8_t> page(4096);
  const auto refused = [&](int dim, DType dtype, Code code, const std::string& text) {
    const std::vector<float> q(256);
    const std::vector<int32_t> lens = {1}, table = {0};
    float out = 5;
    IndexKeys keys{page.data(), dtype, 1, 4, dim, 2048, dim};
    keys.format = IndexKeyFormat::kMxFp4;
    try {
      IndexerLogits({q.data(), DType::kF32, 1, 1, dim, dim, dim}, {}, keys,
                    {{}, lens, table.data(), 1, 1}, {&out, 1, 1});
      ADD_FAILURE() << "not refused: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_EQ(out, 5);
  };
  refused(48, DType::kU8, Code::kBadShape, "keys.head_dim = 48; the format mxfp4");
  refused(160, DType::kU8, Code::kBadShape, "keys.head_dim = 160; the format mxfp4");
  refused(64, DType::kF32, Code::kBadDType, "the format mxfp4 has uint8");
}

TEST(ExpandBlocks, ByHand) {
  const std::vector<int32_t> blocks = {1, 0, -1, 2, 5, 2000000000}, ends = {30, 7};
  std::vector<int32_t> out(2 * 50, 99);
  ExpandBlocks({blocks.data(), 2, 3, 3}, 16, ends, {out.data(), 50});
  for (int i = 0; i < 48; ++i) {
    const int first = i < 16 ? 16 + i < 30 ? 16 + i : -1 : i < 32 ? i - 16 : -1;
    EXPECT_EQ(out[static_cast<size_t>(i)], first) << i;
    EXPECT_EQ(out[static_cast<size_t>(50 + i)], -1) << i;
  }
  EXPECT_EQ(out[48], 99);
  const auto refused = [&](int64_t block, std::vector<int32_t> limits, const std::string& text) {
    const std::vector<int32_t> before = out;
    try {
      ExpandBlocks({blocks.data(), 2, 3, 3}, block, limits, {out.data(), 50});
      ADD_FAILURE() << "not refused: " << text;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_EQ(out, before);
  };
  refused(0, ends, "block = 0 is not in 1..");
  refused(2000000000, ends, "blocks.cols = 3 times block = 2000000000");
  refused(16, {1}, "the number of ends = 1");
  refused(16, {1, -3}, "ends[1] = -3 is negative");
  refused(20, ends, "positions overlaps itself");
}

}  // namespace
}  // namespace riffle::test
