// Bad arguments of Linear and LinearTopK: an Error with the right code, whose text names the
// argument and its value; and not one byte written.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "riffle/error.h"
#include "riffle/linear_topk.h"
#include "testing/error_check.h"

namespace riffle::test {
namespace {

constexpr int64_t kRows = 3;
constexpr int64_t kD = 64;
constexpr int64_t kVocab = 20;
constexpr int64_t kK = 4;
constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();

// The arguments of right calls, for a test to spoil.
struct Arguments {
  MatrixView x;
  WeightView weight;
  int64_t k = kK;
  OutView<float> y;
  LinearTopKOut out;
  LinearOptions options;
};

class LinearErrors : public testing::Test {
 protected:
  // One block of memory holds what may overlap, so that a test can point anywhere.
  LinearErrors() : memory_(65536, 0x20) {}

  template <typename T = float>
  T* At(int64_t byte) {
    return reinterpret_cast<T*>(memory_.data() + byte);
  }

  Arguments Right() {
    Arguments right;
    right.x = {At(0), DType::kF32, kRows, kD, kD};
    right.weight = {At(8192), WeightFormat::kF32, kVocab, kD, kD};
    right.options.bias = {At(16384), DType::kF32, kVocab};
    right.y = {At(24576), kVocab};
    right.out = {At(32768), kK, At<int32_t>(40960), kK};
    return right;
  }

  using Spoil = std::function<void(Arguments&)>;
  using Call = std::function<void(const Arguments&)>;

  void Expect(const Call& call, Code code, const std::vector<std::string>& words,
              const Spoil& spoil) {
    Arguments arguments = Right();
    spoil(arguments);
    const std::vector<uint8_t> before = memory_;
    ExpectError(code, words, [&] { call(arguments); });
    EXPECT_EQ(memory_, before) << "wrote something";
  }

  void ExpectOfProduct(Code code, const std::vector<std::string>& words, const Spoil& spoil) {
    Expect([](const Arguments& a) { Linear(a.x, a.weight, a.y, a.options); }, code, words, spoil);
  }
  void ExpectOfTopK(Code code, const std::vector<std::string>& words, const Spoil& spoil) {
    Expect([](const Arguments& a) { LinearTopK(a.x, a.weight, a.k, a.out, a.options); }, code,
           words, spoil);
  }
  void ExpectOfBoth(Code code, const std::vector<std::string>& words, const Spoil& spoil) {
    ExpectOfProduct(code, words, spoil);
    ExpectOfTopK(code, words, spoil);
  }

  std::vector<uint8_t> memory_;
};

TEST_F(LinearErrors, RightCallsDoNotThrow) {
  const Arguments right = Right();
  Linear(right.x, right.weight, right.y, right.options);
  LinearTopK(right.x, right.weight, right.k, right.out, right.options);
}

TEST_F(LinearErrors, Shapes) {
  using A = Arguments;
  ExpectOfBoth(Code::kBadShape, {"x", "63", "64"}, [](A& a) { a.x.cols = 63; });
  ExpectOfBoth(Code::kBadShape, {"x", "-1"}, [](A& a) { a.x.rows = -1; });
  ExpectOfBoth(Code::kBadShape, {"x", "null"}, [](A& a) { a.x.data = nullptr; });
  ExpectOfBoth(Code::kBadShape, {"x"}, [](A& a) { a.x.row_stride = kHuge; });
  ExpectOfBoth(Code::kBadShape, {"x"}, [](A& a) { a.x.row_stride = kLowest; });
  ExpectOfBoth(Code::kBadShape, {"x"}, [](A& a) { a.x.row_stride = int64_t{1} << 60; });
  ExpectOfBoth(Code::kBadShape, {"weight", "rows", "0"}, [](A& a) { a.weight.rows = 0; });
  ExpectOfBoth(Code::kBadShape, {"weight", "rows"}, [](A& a) { a.weight.rows = int64_t{1} << 31; });
  ExpectOfBoth(Code::kBadShape, {"weight", "columns", "-3"}, [](A& a) { a.weight.cols = -3; });
  ExpectOfBoth(Code::kBadShape, {"weight", "null"}, [](A& a) { a.weight.data = nullptr; });
  ExpectOfBoth(Code::kBadShape, {"weight"}, [](A& a) { a.weight.row_stride = kHuge / 2; });
  ExpectOfBoth(Code::kBadShape, {"weight", "contiguous", "2"}, [](A& a) {
    a.weight.col_stride = 2;
    a.weight.row_stride = 128;
  });
  ExpectOfBoth(Code::kBadShape, {"bias", "19", "20"}, [](A& a) { a.options.bias.size = 19; });
}

TEST_F(LinearErrors, Q8) {
  const auto q8 = [](Arguments& a) {
    a.weight.format = WeightFormat::kQ8_0;
    a.weight.row_stride = kD / 32;
  };
  ExpectOfBoth(Code::kBadShape, {"weight", "40", "32"}, [&](Arguments& a) {
    q8(a);
    a.weight.cols = a.x.cols = 40;
  });
  ExpectOfBoth(Code::kBadShape, {"weight.col_stride = 2"}, [&](Arguments& a) {
    q8(a);
    a.weight.col_stride = 2;
    a.weight.row_stride = 1;
  });
}

TEST_F(LinearErrors, DTypes) {
  using A = Arguments;
  ExpectOfBoth(Code::kBadDType, {"x", "7"}, [](A& a) { a.x.dtype = static_cast<DType>(7); });
  ExpectOfBoth(Code::kBadDType, {"weight", "9"},
               [](A& a) { a.weight.format = static_cast<WeightFormat>(9); });
  ExpectOfBoth(Code::kBadDType, {"bias", "5"},
               [](A& a) { a.options.bias.dtype = static_cast<DType>(5); });
}

TEST_F(LinearErrors, K) {
  for (const int64_t k : {int64_t{0}, int64_t{-1}, kVocab + 1, kHuge, kLowest}) {
    ExpectOfTopK(Code::kBadK, {"k = ", std::to_string(k), "20"}, [&](Arguments& a) { a.k = k; });
  }
}

TEST_F(LinearErrors, Outputs) {
  using A = Arguments;
  ExpectOfProduct(Code::kBadShape, {"y", "null"}, [](A& a) { a.y.data = nullptr; });
  ExpectOfProduct(Code::kBadShape, {"y"}, [](A& a) { a.y.row_stride = kHuge; });
  ExpectOfProduct(Code::kOverlap, {"y", "stride"}, [](A& a) { a.y.row_stride = kVocab - 1; });
  ExpectOfProduct(Code::kOverlap, {"y", "x"}, [&](A& a) { a.y.data = At(700); });
  ExpectOfProduct(Code::kOverlap, {"y", "weight"}, [&](A& a) { a.y.data = At(8188); });
  ExpectOfProduct(Code::kOverlap, {"y", "bias"}, [&](A& a) { a.y.data = At(16384 + 76); });
  ExpectOfTopK(Code::kBadShape, {"values", "null"}, [](A& a) { a.out.values = nullptr; });
  ExpectOfTopK(Code::kBadShape, {"indices", "null"}, [](A& a) { a.out.indices = nullptr; });
  ExpectOfTopK(Code::kOverlap, {"values", "stride"}, [](A& a) { a.out.values_stride = kK - 1; });
  ExpectOfTopK(Code::kOverlap, {"indices", "stride"}, [](A& a) { a.out.indices_stride = 0; });
  ExpectOfTopK(Code::kOverlap, {"values", "indices"},
               [&](A& a) { a.out.indices = At<int32_t>(32768 + 44); });
  ExpectOfTopK(Code::kOverlap, {"indices", "weight"},
               [&](A& a) { a.out.indices = At<int32_t>(8192 + 5116); });
  ExpectOfTopK(Code::kOverlap, {"values", "x"}, [&](A& a) { a.out.values = At(0); });
  ExpectOfTopK(Code::kBadOption, {"index_type", "7"},
               [](A& a) { a.out.index_type = static_cast<IndexType>(7); });
  // Twice as wide as int32, they reach into the values.
  ExpectOfTopK(Code::kOverlap, {"values", "indices"}, [&](A& a) {
    a.out.indices = At<int64_t>(32768 - 8 * (kRows * kK - 1));
    a.out.index_type = IndexType::kInt64;
  });
}

// The rows of two outputs may be interleaved.
TEST_F(LinearErrors, InterleavedOutputs) {
  Arguments a = Right();
  a.out = {At(32768), 2 * kK, At<int32_t>(32768) + kK, 2 * kK};
  LinearTopK(a.x, a.weight, a.k, a.out, a.options);
}

}  // namespace
}  // namespace riffle::test
