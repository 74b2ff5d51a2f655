// Another thread writes rows while a call reads them. The results are unspecified, but no call may
// read or write outside of its arguments: the rows end where mapped memory ends.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "riffle/riffle.h"
#include "testing/buffers.h"

namespace riffle::test {
namespace {

constexpr int64_t kRows = 8;
constexpr int64_t kColumns = 30000;
constexpr auto kTime = std::chrono::milliseconds(150);

class RacingRows : public testing::TestWithParam<uint32_t> {
 protected:
  static constexpr size_t kElements = static_cast<size_t>(kRows * kColumns);

  // Makes calls while another thread fills the rows with 1.0 and with the parameter's bits in turn.
  void Race(const std::function<void()>& call, const std::function<void()>& check) {
    Fill(std::bit_cast<uint32_t>(1.0f));
    std::atomic<bool> stop{false};
    std::thread writer([&] {
      while (!stop) {
        Fill(GetParam());
        Fill(std::bit_cast<uint32_t>(1.0f));
      }
    });
    const auto end = std::chrono::steady_clock::now() + kTime;
    while (std::chrono::steady_clock::now() < end && !HasFailure()) {
      try {
        call();
        check();
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Code::kBadValue) << error.what();  // a NaN among logits
      }
    }
    stop = true;
    writer.join();
  }

  void Fill(uint32_t bits) {
    auto* to = reinterpret_cast<volatile uint32_t*>(buffer_.data());
    for (size_t i = 0; i < kElements; ++i) to[i] = bits;
  }

  template <typename T>
  static void ExpectInRange(const std::vector<T>& indices, T columns) {
    for (const T index : indices) {
      ASSERT_GE(index, 0);
      ASSERT_LT(index, columns);
    }
  }

  GuardedBuffer buffer_{kElements * sizeof(float), /*at_end=*/true};
  const MatrixView view_{buffer_.data(), DType::kF32, kRows, kColumns, kColumns};
};

TEST_P(RacingRows, TopK) {
  for (const Algorithm algorithm : {Algorithm::kBucketMaxima, Algorithm::kLaneSort}) {
    for (const int64_t k : {1, 8, 300, 20000}) {
      for (const bool largest : {true, false}) {
        if (algorithm == Algorithm::kLaneSort && k == 20000) continue;
        ThreadPool pool(1);
        TopKOptions options;
        options.algorithm = algorithm;
        options.largest = largest;
        options.pool = &pool;
        std::vector<float> values(static_cast<size_t>(kRows * k));
        std::vector<int32_t> indices(values.size());
        Race(
            [&] {
              TopK(view_, k, {values.data(), k, indices.data(), k}, options);
            },
            [&] { ExpectInRange(indices, int32_t{kColumns}); });
      }
    }
  }
}

TEST_P(RacingRows, SixteenBits) {
  const MatrixView halves{buffer_.data(), DType::kBF16, kRows, 2 * kColumns, 2 * kColumns};
  std::vector<uint16_t> values(static_cast<size_t>(kRows * 64));
  std::vector<int32_t> indices(values.size());
  Race(
      [&] {
        TopK(halves, 64, {values.data(), 64, indices.data(), 64});
      },
      [&] { ExpectInRange(indices, int32_t{2 * kColumns}); });
}

TEST_P(RacingRows, Sample) {
  std::vector<int32_t> tokens(kRows);
  for (const float top_p : {1.0f, 0.9f}) {
    for (const int32_t top_k : {0, 50, 5000}) {
      Race(
          [&] {
            Sample(view_, tokens, {.top_k = {&top_k, 1}, .top_p = {&top_p, 1}});
          },
          [&] { ExpectInRange(tokens, int32_t{kColumns}); });
    }
  }
}

// The rows are weights of a linear layer.
TEST_P(RacingRows, LinearTopK) {
  const std::vector<float> x(3 * 64, 0.5f);
  const int64_t vocab = kRows * kColumns / 64;
  const WeightView weight{buffer_.data(), WeightFormat::kF32, vocab, 64, 64};
  std::vector<float> values(3 * 8);
  std::vector<int32_t> indices(values.size());
  const int64_t q8_vocab = static_cast<int64_t>(kElements * 4) / 68;
  const WeightView q8{buffer_.data(), WeightFormat::kQ8_0, q8_vocab, 64, 2};
  for (const int64_t rows : {1, 3}) {
    for (const WeightView& w : {weight, q8}) {
      Race(
          [&] {
            LinearTopK({x.data(), DType::kF32, rows, 64, 64}, w, 8,
                       {values.data(), 8, indices.data(), 8});
          },
          [&] { ExpectInRange(indices, static_cast<int32_t>(w.rows)); });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Bits, RacingRows,
                         testing::Values(std::bit_cast<uint32_t>(2.0f), 0x7fc00000u, 0xffc00000u,
                                         0xbf800000u));

}  // namespace
}  // namespace riffle::test
