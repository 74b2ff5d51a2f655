// Linear and LinearTopK from and on several threads.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "riffle/linear_topk.h"
#include "testing/linear_case.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

// Calls from several threads share one pool: one call has its workers, the others run alone.
TEST(LinearThreads, ConcurrentCalls) {
  const LinearCase linear(
      {.rows = 5, .d = 256, .vocab = 700, .x_dtype = DType::kBF16, .format = WeightFormat::kBF16});
  std::string fault;
  const std::vector<float> expected = linear.Run(&PoolOf(2), &fault);
  std::vector<std::thread> threads;
  std::vector<int> wrong(3, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) {
        const std::vector<float> y = linear.RunRows(0, 5, &PoolOf(2));
        wrong[t] += std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0 ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(3, 0));
}

// All chunks of a call raise and read the same bounds; with Q8_0 they also share candidates.
void CheckPieces(const LinearSpec& spec) {
  const LinearCase linear(spec);
  const int64_t k = 50;
  std::vector<float> values(150), expected(150);
  std::vector<int32_t> indices(150), columns(150);
  for (const int threads : {1, 2, 4}) {
    const bool first = threads == 1;
    LinearTopK(
        linear.x(), linear.weight(), k,
        {first ? expected.data() : values.data(), k, first ? columns.data() : indices.data(), k},
        linear.options(&PoolOf(threads)));
    if (first) continue;
    EXPECT_EQ(values, expected);
    EXPECT_EQ(indices, columns);
  }
}

TEST(LinearThreads, ChunksShareBounds) {
  CheckPieces({.rows = 3, .d = 32, .vocab = 9000, .data = LinearData::kTies});
}

TEST(LinearThreads, ChunksShareCandidates) {
  CheckPieces({.rows = 3, .d = 96, .vocab = 9000, .format = WeightFormat::kQ8_0});
}

}  // namespace
}  // namespace riffle::test
