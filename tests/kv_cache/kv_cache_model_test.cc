// Long random histories of a cache beside a model. The pools are small, so a good part of the calls
// find them full.
#include <gtest/gtest.h>

#include "kv_cache_history.h"
#include "riffle/kv_cache.h"
#include "testing/targets.h"
#include "testing/text.h"

namespace riffle::test {
namespace {

struct Case {
  KvCacheOptions options;
  uint64_t seed = 0;
  int steps = kSlow ? 3000 : 6000;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  uint64_t seed = 1;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const int64_t page_size : {1, 2, 3, 4, 7, 16}) {
      for (const int64_t pages : {1, 5, 12, 20}) {
        if (pages * page_size > 200) continue;
        Case c;
        c.options.layers = 1 + static_cast<int64_t>(seed) % 3;
        c.options.kv_heads = 1 + static_cast<int64_t>(seed / 3) % 3;
        c.options.head_dim = 1 + static_cast<int64_t>(seed / 2) % 5;
        c.options.pages = pages;
        c.options.page_size = page_size;
        c.options.dtype = dtype;
        c.seed = seed++;
        cases.push_back(c);
      }
    }
  }
  // Formats with scales, and blocks; keys unlike values.
  const auto add = [&](DType dtype, KvFormat format, int64_t head_dim, const auto& more) {
    Case c;
    c.options.layers = 2;
    c.options.kv_heads = 1 + static_cast<int64_t>(seed % 2);
    c.options.head_dim = head_dim;
    c.options.pages = 9;
    c.options.page_size = 3;
    c.options.dtype = dtype;
    c.options.format = format;
    more(c.options);
    c.seed = seed++;
    c.steps = 1200;
    cases.push_back(c);
  };
  add(DType::kI8, KvFormat::kPlain, 5, [](KvCacheOptions&) {});
  add(DType::kE4M3, KvFormat::kPlain, 40, [](KvCacheOptions& o) {
    o.scale_group = 32;
    o.scale_dtype = DType::kBF16;
    o.value_dtype = DType::kF32;
    o.value_dim = 3;
  });
  add(DType::kE5M2, KvFormat::kPlain, 7, [](KvCacheOptions& o) { o.scale_dtype = DType::kE8M0; });
  add(DType::kBF16, KvFormat::kQ8_0, 64, [](KvCacheOptions& o) {
    o.value_format = KvFormat::kQ4_0;
    o.value_dim = 32;
  });
  add(DType::kF16, KvFormat::kPlain, 9, [](KvCacheOptions& o) {
    o.value_format = KvFormat::kIQ4NL;
    o.value_dim = 32;
  });
  add(DType::kBF16, KvFormat::kQ5_1, 32, [](KvCacheOptions& o) { o.value_dtype = DType::kI8; });
  return cases;
}

class KvCacheModelTest : public testing::TestWithParam<Case> {};

TEST_P(KvCacheModelTest, RandomHistory) {
  const Case& c = GetParam();
  History history(c.options, c.seed);
  for (int step = 0; step < c.steps && !HasFailure(); ++step) {
    history.Step();
    history.Compare();
    if (HasFailure()) ADD_FAILURE() << "at step " << step;
  }
  // So that the comparisons above have met what they are for.
  const KvCacheStats& stats = history.expected_stats();
  EXPECT_GT(history.refused(), c.steps / 200) << "the pool is not small enough to be full often";
  if (c.options.pages > 1) {
    EXPECT_GT(stats.pages_copied, c.steps / 300) << "too little is shared";
    EXPECT_GT(stats.blocks_found, c.steps / 300) << "too few keys are found";
    EXPECT_GT(stats.pages_evicted, c.steps / 600) << "too few pages are evicted";
    EXPECT_GT(stats.pages_swapped_in, c.steps / 300) << "too little is swapped";
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  const KvCacheOptions& o = info.param.options;
  return Concat(Name(o.dtype), "_", Name(o.format), "_", o.pages, "_pages_of_", o.page_size,
                "_seed_", info.param.seed);
}

INSTANTIATE_TEST_SUITE_P(, KvCacheModelTest, testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace riffle::test
