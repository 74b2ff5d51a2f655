// Bad arguments of Sample, and rows that have no answer: an Error with the right code, whose text
// names the argument or the row; and not one byte written.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "riffle/error.h"
#include "riffle/sampling.h"
#include "testing/error_check.h"

namespace riffle::test {
namespace {

constexpr int64_t kRows = 3;
constexpr int64_t kCols = 2000;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// The arguments of a right call, for a test to spoil.
struct Arguments {
  std::vector<float> x = std::vector<float>(kRows * kCols, 1.0f);
  MatrixView logits{x.data(), DType::kF32, kRows, kCols, kCols};
  std::vector<float> temperature, top_p, min_p;
  std::vector<int32_t> top_k;
  std::vector<int64_t> stream, position;
  std::vector<int32_t> tokens = std::vector<int32_t>(kRows, -7);
  std::vector<float> logprobs = std::vector<float>(kRows, -7);
  std::span<int32_t> tokens_out = tokens;
  std::span<float> logprobs_out = logprobs;

  float& At(int64_t row, int64_t column) { return x[static_cast<size_t>(row * kCols + column)]; }
  void Run() {
    Sample(logits, tokens_out, logprobs_out,
           {.temperature = temperature,
            .top_k = top_k,
            .top_p = top_p,
            .min_p = min_p,
            .stream = stream,
            .position = position});
  }
};

void Expect(Code code, const std::vector<std::string>& words,
            const std::function<void(Arguments&)>& spoil) {
  Arguments a;
  spoil(a);
  const std::vector<float> before = a.x;
  ExpectError(code, words, [&] { a.Run(); });
  EXPECT_EQ(a.tokens, std::vector<int32_t>(kRows, -7));
  EXPECT_EQ(a.logprobs, std::vector<float>(kRows, -7));
  EXPECT_EQ(std::memcmp(before.data(), a.x.data(), before.size() * sizeof(float)), 0);
}

TEST(SampleErrors, TheRightCallIsRight) {
  Arguments a;
  EXPECT_NO_THROW(a.Run());
  EXPECT_NE(a.tokens, std::vector<int32_t>(kRows, -7));
  EXPECT_NE(a.logprobs, std::vector<float>(kRows, -7));
}

TEST(SampleErrors, Parameters) {
  for (const float bad : {-1.0f, -1e-40f, kInf, -kInf, kNaN}) {
    Expect(Code::kBadOption, {"temperature[1]"}, [=](Arguments& a) {
      a.temperature = {1, bad, 1};
    });
    Expect(Code::kBadOption, {"top_p[0]"}, [=](Arguments& a) { a.top_p = {bad}; });
    Expect(Code::kBadOption, {"min_p[2]"}, [=](Arguments& a) { a.min_p = {0, 1, bad}; });
  }
  Expect(Code::kBadOption, {"top_p[0]", "1.5", "0..1"}, [](Arguments& a) { a.top_p = {1.5f}; });
  Expect(Code::kBadOption, {"min_p[0]", "1.5", "0..1"}, [](Arguments& a) { a.min_p = {1.5f}; });
  Expect(Code::kBadOption, {"top_k[2]", "-1"}, [](Arguments& a) { a.top_k = {0, 5, -1}; });
}

TEST(SampleErrors, Lengths) {
  Expect(Code::kBadShape, {"temperature", "2", "3"}, [](Arguments& a) { a.temperature = {1, 1}; });
  Expect(Code::kBadShape, {"top_k", "4", "3"}, [](Arguments& a) { a.top_k = {1, 1, 1, 1}; });
  Expect(Code::kBadShape, {"top_p", "2"}, [](Arguments& a) { a.top_p = {1, 1}; });
  Expect(Code::kBadShape, {"min_p", "2"}, [](Arguments& a) { a.min_p = {1, 1}; });
  Expect(Code::kBadShape, {"stream", "2"}, [](Arguments& a) { a.stream = {1, 1}; });
  Expect(Code::kBadShape, {"position", "2"}, [](Arguments& a) { a.position = {1, 1}; });
  Expect(Code::kBadShape, {"tokens", "2", "3"},
         [](Arguments& a) { a.tokens_out = a.tokens_out.first(2); });
  Expect(Code::kBadShape, {"logprobs", "1", "3"},
         [](Arguments& a) { a.logprobs_out = a.logprobs_out.first(1); });
}

TEST(SampleErrors, Logits) {
  Expect(Code::kBadShape, {"logits", "columns"}, [](Arguments& a) { a.logits.cols = 0; });
  Expect(Code::kBadShape, {"logits", "columns"},
         [](Arguments& a) { a.logits.cols = int64_t{1} << 31; });
  Expect(Code::kBadShape, {"logits", "-1 rows"}, [](Arguments& a) { a.logits.rows = -1; });
  Expect(Code::kBadShape, {"logits", "null"}, [](Arguments& a) { a.logits.data = nullptr; });
  Expect(Code::kBadShape, {"logits", "stride"},
         [](Arguments& a) { a.logits.row_stride = std::numeric_limits<int64_t>::max() / 2; });
  Expect(Code::kBadDType, {"logits", "7"},
         [](Arguments& a) { a.logits.dtype = static_cast<DType>(7); });
}

TEST(SampleErrors, Overlap) {
  Expect(Code::kOverlap, {"tokens", "logits"}, [](Arguments& a) {
    a.tokens_out = {reinterpret_cast<int32_t*>(&a.At(1, 5)), static_cast<size_t>(kRows)};
  });
  Expect(Code::kOverlap, {"logprobs", "temperature"}, [](Arguments& a) {
    a.temperature = {1, 1, 1};
    a.logprobs_out = a.temperature;
  });
  Expect(Code::kOverlap, {"logprobs", "tokens"}, [](Arguments& a) {
    a.logprobs_out = {reinterpret_cast<float*>(a.tokens.data()), static_cast<size_t>(kRows)};
  });
}

// Greedy or not, few columns or many, at either end: a NaN has no probability.
TEST(SampleErrors, NaN) {
  for (const float temperature : {0.0f, 1.0f}) {
    for (const int32_t top_k : {0, 7, 1500}) {
      for (const float top_p : {0.9f, 1.0f}) {
        for (const int64_t column : {int64_t{0}, int64_t{1234}, kCols - 1}) {
          for (const float nan : {kNaN, -kNaN}) {
            Expect(Code::kBadValue, {"logits[1, " + std::to_string(column) + "]", "NaN"},
                   [=](Arguments& a) {
                     a.temperature = {temperature};
                     a.top_k = {top_k};
                     a.top_p = {top_p};
                     a.At(1, column) = nan;
                     a.At(2, 0) = nan;  // the first row is named
                   });
          }
        }
      }
    }
  }
}

TEST(SampleErrors, NothingToSample) {
  for (const float temperature : {0.0f, 1.0f}) {
    Expect(Code::kBadValue, {"logits[2]", "-inf"}, [=](Arguments& a) {
      a.temperature = {temperature};
      for (int64_t i = 0; i < kCols; ++i) a.At(2, i) = -kInf;
    });
  }
}

TEST(SampleErrors, NoRowsAreNoError) {
  std::vector<int32_t> none;
  EXPECT_NO_THROW(Sample({nullptr, DType::kF32, 0, 5, 5}, none));
  EXPECT_THROW(Sample({nullptr, DType::kF32, 0, 0, 5}, none), Error);
}

}  // namespace
}  // namespace riffle::test
