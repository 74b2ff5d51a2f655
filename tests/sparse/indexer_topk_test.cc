// IndexerTopK against TopKPerRow over IndexerLogits, and its options against slow selection.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
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

using Rows = std::vector<std::vector<int32_t>>;

Rows Call(const IndexerCase& test, int64_t k, IndexTopKOptions options) {
  options.activation = test.spec().activation;
  options.ratio = test.spec().ratio;
  const int64_t stride = k + 3;
  std::vector<int32_t> out(static_cast<size_t>(test.tokens() * stride), 1234567);
  IndexerTopK(test.q(), test.weights(), test.keys(), test.batch(), k, {out.data(), stride},
              options);
  Rows rows;
  for (int64_t t = 0; t < test.tokens(); ++t) {
    const auto at = out.begin() + t * stride;
    rows.emplace_back(at, at + k);
    EXPECT_TRUE(std::all_of(at + k, at + stride, [](int32_t x) { return x == 1234567; }));
  }
  return rows;
}

// TopKPerRow over stored scores.
Rows Stored(const IndexerCase& test, int64_t k) {
  const std::vector<float> logits = test.Logits();
  const int64_t cols = test.cols();
  std::vector<int32_t> starts(static_cast<size_t>(test.tokens())), ends(starts.size());
  for (size_t t = 0; t < ends.size(); ++t) {
    ends[t] = static_cast<int32_t>(test.Visible(static_cast<int64_t>(t)));
  }
  std::vector<int32_t> out(static_cast<size_t>(test.tokens() * k));
  TopKPerRow(View(logits.data(), test.tokens(), cols), starts, ends, k, {out.data(), k},
             {.index_order_if_short = true});
  Rows rows;
  for (int64_t t = 0; t < test.tokens(); ++t) {
    rows.emplace_back(out.begin() + t * k, out.begin() + (t + 1) * k);
  }
  return rows;
}

// What the header says, from stored scores, by a stable sort.
Rows Slow(const IndexerCase& test, int64_t k, const IndexTopKOptions& options) {
  const std::vector<float> logits = test.Logits();
  Rows rows;
  for (int64_t t = 0; t < test.tokens(); ++t) {
    const int64_t visible = test.Visible(t);
    const int64_t blocks = (visible + options.block - 1) / options.block;
    std::set<int64_t> forced, scored;
    for (int64_t b = 0; b < std::min(options.first_blocks, blocks); ++b) forced.insert(b);
    for (int64_t b = std::max<int64_t>(0, blocks - options.local_blocks); b < blocks; ++b) {
      forced.insert(b);
    }
    if (options.incomplete_tail && visible % options.block != 0) forced.insert(blocks - 1);
    for (int64_t b = 0; b < blocks; ++b) {
      bool named = options.candidates == nullptr;
      for (int64_t i = 0; i < options.candidate_cols; ++i) {
        const int32_t c = options.candidates[t * options.candidate_stride + i];
        named |= c >= 0 && b / options.candidate_span == c;
      }
      if (named && !forced.contains(b)) scored.insert(b);
    }
    std::vector<int32_t> row;
    const auto wanted = k - static_cast<int64_t>(forced.size());
    if (static_cast<int64_t>(scored.size()) <= wanted) {
      forced.insert(scored.begin(), scored.end());
      row.assign(forced.begin(), forced.end());
    } else {
      row.assign(forced.begin(), forced.end());
      std::vector<std::pair<long double, int32_t>> list;
      for (const int64_t b : scored) {
        const int64_t begin = b * options.block;
        const int64_t end = std::min(visible, begin + options.block);
        const float* x = logits.data() + t * test.cols();
        float value = x[begin];
        for (int64_t i = begin + 1; i < end; ++i) {
          if (options.block_score == BlockScore::kMean) {
            value = value + x[i];
          } else if (Before(x[i], 0, value, 0)) {
            value = x[i];
          }
        }
        if (options.block_score == BlockScore::kMean) value /= static_cast<float>(end - begin);
        list.emplace_back(value, static_cast<int32_t>(b));
      }
      std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) {
        return Before(a.first, a.second, b.first, b.second);
      });
      for (int64_t i = 0; i < wanted; ++i) row.push_back(list[static_cast<size_t>(i)].second);
    }
    if (options.slots) {
      for (int32_t& x : row) x = test.Slot(test.Sequence(t), x);
    }
    row.resize(static_cast<size_t>(k), -1);
    rows.push_back(row);
  }
  return rows;
}

std::vector<IndexerSpec> Specs() {
  std::vector<IndexerSpec> specs;
  uint64_t seed = 0;
  for (const DType keys : {DType::kI8, DType::kBF16, DType::kF32, DType::kE4M3}) {
    for (const bool ties : {false, true}) {
      for (const int64_t ratio : {1, 4}) {
        IndexerSpec spec;
        spec.q_dtype = keys == DType::kE4M3 ? DType::kBF16 : keys;
        spec.key_dtype = keys;
        spec.ties = ties;
        spec.ratio = ratio;
        spec.seed = ++seed;
        spec.heads = ties ? 2 : 5;
        spec.head_dim = 32;
        spec.specials = seed % 3 == 0;
        spec.page_size = ratio == 1 ? 16 : 5;
        spec.q_lens = {1, 20, 3, 0, 2};
        spec.kv_lens = {6000, 900, 2, 50, 0};
        specs.push_back(spec);
      }
    }
  }
  return specs;
}

TEST(IndexerTopK, IsTopKOfStoredScores) {
  OnEveryTarget([](const std::string& target) {
    for (const IndexerSpec& spec : Specs()) {
      const IndexerCase test(spec);
      for (const int64_t k : {1, 64, 500, 3000, 20000}) {
        const Rows want = Stored(test, k);
        for (const int threads : {1, 3}) {
          IndexTopKOptions options;
          options.pool = &PoolOf(threads);
          ASSERT_EQ(Call(test, k, options), want)
              << target << " k " << k << " threads " << threads << " " << Describe(spec);
        }
      }
    }
  });
}

// Every score equal: the first positions.
TEST(IndexerTopK, AllEqual) {
  std::vector<float> q(32), keys(9000 * 32);
  const std::vector<int32_t> lens = {9000}, table = {0};
  PagedBatch batch;
  batch.kv_lens = lens;
  batch.page_table = table.data();
  batch.max_pages = batch.page_table_stride = 1;
  for (const int threads : {1, 2, 3}) {
    std::vector<int32_t> out(1000);
    IndexerTopK({q.data(), DType::kF32, 1, 1, 32, 32, 32}, {},
                {keys.data(), DType::kF32, 1, 9000, 32, 0, 32}, batch, 1000, {out.data(), 1000},
                {.pool = &PoolOf(threads)});
    for (int32_t i = 0; i < 1000; ++i) {
      ASSERT_EQ(out[static_cast<size_t>(i)], i);
    }
  }
}

// Forced members, blocks, candidates, slots, in random combinations.
TEST(IndexerTopK, Options) {
  Rng rng(FromEnvironment("RIFFLE_TEST_SEED", 5));
  const auto cases = static_cast<int>(FromEnvironment("RIFFLE_TEST_CASES", 100));
  const std::vector<IndexerSpec> specs = Specs();
  for (int i = 0; i < cases; ++i) {
    IndexerSpec spec = rng.Pick(specs);
    spec.seed = rng.Next() % 1000;
    spec.kv_lens[0] = static_cast<int>(rng.Between(1, 4000));
    const IndexerCase test(spec);
    IndexTopKOptions options;
    options.activation = spec.activation;
    options.ratio = spec.ratio;
    options.block = rng.OneIn(3) ? 1 : rng.Between(2, 150);
    options.block_score = rng.OneIn(2) ? BlockScore::kMax : BlockScore::kMean;
    const int64_t k = rng.Between(3, rng.OneIn(2) ? 12 : 400);
    options.first_blocks = rng.OneIn(2) ? 0 : rng.Between(0, 2);
    options.local_blocks = rng.OneIn(2) ? 0 : rng.Between(0, k - options.first_blocks - 1);
    options.incomplete_tail = rng.OneIn(2);
    options.slots = options.block == 1 && rng.OneIn(2);
    std::vector<int32_t> candidates;
    if (rng.OneIn(2)) {
      options.candidate_span = rng.OneIn(2) ? 1 : rng.Between(2, 9);
      options.candidate_cols = rng.Between(0, 300);
      options.candidate_stride = options.candidate_cols + 2;
      const int64_t most = test.cols() / options.block / options.candidate_span + 3;
      for (int64_t c = 0; c < test.tokens() * options.candidate_stride; ++c) {
        candidates.push_back(static_cast<int32_t>(rng.Between(-1, most)));
      }
      candidates.push_back(0);
      options.candidates = candidates.data();
    }
    options.pool = &PoolOf(static_cast<int>(rng.Between(1, 3)));
    ASSERT_EQ(Call(test, k, options), Slow(test, k, options))
        << "case " << i << " k " << k << " block " << options.block << " mean "
        << (options.block_score == BlockScore::kMean) << " first " << options.first_blocks
        << " local " << options.local_blocks << " tail " << options.incomplete_tail
        << " candidates " << options.candidate_cols << " of " << options.candidate_span << " "
        << Describe(spec);
  }
}

// int8: one selection, whatever the target.
TEST(IndexerTopK, Int8SelectsTheSameOnEveryTarget) {
  IndexerSpec spec;
  spec.q_dtype = DType::kBF16;
  spec.key_dtype = DType::kI8;
  spec.heads = 64;
  spec.head_dim = 128;
  spec.q_lens = std::vector<int>{2};
  spec.kv_lens = std::vector<int>{6000};
  const IndexerCase test(spec);
  const Rows want = Call(test, 512, {});
  OnEveryTarget([&](const std::string& target) { EXPECT_EQ(Call(test, 512, {}), want) << target; });
}

}  // namespace
}  // namespace riffle::test
