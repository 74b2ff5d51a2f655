// Bad arguments of TopK: an Error with the right code, whose text names the argument, its value and
// the limit; and not one byte written.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <span>

#include "riffle/error.h"
#include "riffle/topk.h"
#include "testing/buffers.h"
#include "testing/error_check.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

constexpr int64_t kRows = 3;
constexpr int64_t kCols = 20;
constexpr int64_t kK = 4;
constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();

// The arguments of a right call of TopK on a 3 x 20 matrix, for a test to spoil.
struct Arguments {
  MatrixView x;
  int64_t k = kK;
  std::vector<int32_t> ks;  // not empty: one per row instead of k
  TopKOut out;
  TopKOptions options;
  std::vector<int> schedule;

  void Run() {
    if (!schedule.empty()) options.depth_schedule = schedule;
    if (ks.empty()) {
      TopK(x, k, out, options);
    } else {
      TopK(x, std::span<const int32_t>(ks), out, options);
    }
  }
};

class TopKErrors : public testing::Test {
 protected:
  // One block of memory holds what may overlap, so that a test can point anywhere.
  TopKErrors() : memory_(65536) {
    Rng rng(3);
    for (uint8_t& byte : memory_) byte = static_cast<uint8_t>(rng.Next() & 0x3f);  // no NaN
  }

  uint8_t* At(int64_t byte) { return memory_.data() + byte; }
  int32_t* IntsAt(int64_t byte) { return reinterpret_cast<int32_t*>(At(byte)); }

  Arguments Right() {
    Arguments right;
    right.x = {At(1024), DType::kF32, kRows, kCols, kCols};
    right.out = {At(8192), kK, IntsAt(16384), kK, reinterpret_cast<TopKStats*>(At(24576))};
    return right;
  }

  using Spoil = std::function<void(Arguments&)>;

  // Expects that the spoiled call throws `code` with a text that has all of `words`, and that the
  // memory is unchanged.
  void Expect(Code code, const std::vector<std::string>& words, const Spoil& spoil) {
    Arguments arguments = Right();
    spoil(arguments);
    const std::vector<uint8_t> before = memory_;
    ExpectError(code, words, [&] { arguments.Run(); });
    EXPECT_EQ(memory_, before) << "wrote something";
    memory_ = before;
  }

  void ExpectRight(const Spoil& change) {
    Arguments arguments = Right();
    change(arguments);
    const std::vector<uint8_t> before = memory_;
    EXPECT_NO_THROW(arguments.Run());
    memory_ = before;
  }

  std::vector<uint8_t> memory_;
};

TEST_F(TopKErrors, TheRightCallIsRight) {
  Arguments arguments = Right();
  arguments.Run();
  for (int64_t row = 0; row < kRows; ++row) {
    const Truth truth(arguments.x, kK);
    for (int64_t i = 0; i < kK; ++i) {
      EXPECT_EQ(static_cast<const int32_t*>(arguments.out.indices)[row * kK + i],
                truth.columns[static_cast<size_t>(row)][static_cast<size_t>(i)]);
    }
  }
}

TEST_F(TopKErrors, K) {
  for (const int64_t k : {int64_t{0}, int64_t{-1}, int64_t{21}, int64_t{1} << 32, kHuge, kLowest}) {
    Expect(Code::kBadK, {"k", std::to_string(k), "1", "20"}, [=](Arguments& a) { a.k = k; });
  }
}

TEST_F(TopKErrors, KPerRow) {
  Expect(Code::kBadK, {"k[1]", "0", "1", "20"}, [](Arguments& a) { a.ks = {4, 0, 1}; });
  Expect(Code::kBadK, {"k[2]", "21", "20"}, [](Arguments& a) { a.ks = {4, 4, 21}; });
  Expect(Code::kBadK, {"k[0]", "-5"}, [](Arguments& a) { a.ks = {-5, 4, 2}; });
  Expect(Code::kBadShape, {"k", "2", "3"}, [](Arguments& a) { a.ks = {4, 4}; });
  Expect(Code::kBadShape, {"k", "4", "3"}, [](Arguments& a) { a.ks = {4, 4, 4, 4}; });
}

TEST_F(TopKErrors, Shape) {
  for (const int64_t cols : {int64_t{0}, int64_t{-1}, int64_t{1} << 31, kHuge}) {
    Expect(Code::kBadShape, {"x", "columns", std::to_string(cols), "2147483647"},
           [=](Arguments& a) { a.x.cols = cols; });
  }
  Expect(Code::kBadShape, {"x", "rows", "-1"}, [](Arguments& a) { a.x.rows = -1; });
  Expect(Code::kBadShape, {"x", "rows"}, [](Arguments& a) { a.x.rows = kLowest; });
  Expect(Code::kBadDType, {"dtype", "99"},
         [](Arguments& a) { a.x.dtype = static_cast<DType>(99); });
  Expect(Code::kBadDType, {"float8_e4m3fn"}, [](Arguments& a) { a.x.dtype = DType::kE4M3; });
}

TEST_F(TopKErrors, NullPointers) {
  Expect(Code::kBadShape, {"x", "null"}, [](Arguments& a) { a.x.data = nullptr; });
  Expect(Code::kBadShape, {"values", "null"}, [](Arguments& a) { a.out.values = nullptr; });
  Expect(Code::kBadShape, {"indices", "null"}, [](Arguments& a) { a.out.indices = nullptr; });
}

TEST_F(TopKErrors, DTypesAndIds) {
  Expect(Code::kBadDType, {"x", "int64", "lane sort"}, [](Arguments& a) {
    a.x.dtype = DType::kI64;
    a.options.algorithm = Algorithm::kLaneSort;
  });
  static constexpr int64_t kIds[64] = {};
  Expect(Code::kBadDType, {"ids", "int64", "int32"}, [](Arguments& a) {
    a.options.ids = {kIds, IndexType::kInt64, 0};
  });
  Expect(Code::kBadShape, {"ids", "row stride"}, [](Arguments& a) {
    a.options.ids = {kIds, IndexType::kInt32, kHuge};
  });
  Expect(Code::kOverlap, {"indices", "ids"}, [](Arguments& a) {
    a.options.ids = {a.out.indices, IndexType::kInt32, 0};
  });
  Expect(Code::kBadOption, {"index_type", "9"},
         [](Arguments& a) { a.out.index_type = static_cast<IndexType>(9); });
  Expect(Code::kBadOption, {"index_order_if_short"},
         [](Arguments& a) { a.options.index_order_if_short = true; });
}

// Strides whose product with the rows or the element's size does not fit 64 bits.
TEST_F(TopKErrors, StridesBeyondTheAddressSpace) {
  for (const int64_t stride : {kHuge, kLowest, kHuge / 2, kLowest / 2, kHuge / 4, kLowest / 4}) {
    const std::string text = std::to_string(stride);
    Expect(Code::kBadShape, {"stride", text}, [=](Arguments& a) { a.x.row_stride = stride; });
    Expect(Code::kBadShape, {"values"}, [=](Arguments& a) { a.out.values_stride = stride; });
    Expect(Code::kBadShape, {"indices"}, [=](Arguments& a) { a.out.indices_stride = stride; });
  }
}

TEST_F(TopKErrors, Lanes) {
  for (const int lanes : {0, -1, 3, 100, 8192, std::numeric_limits<int>::min()}) {
    for (const Algorithm algorithm : {Algorithm::kLaneSort, Algorithm::kAuto}) {
      Expect(Code::kBadOption, {"lanes", std::to_string(lanes), "1", "4096"}, [=](Arguments& a) {
        a.options.algorithm = algorithm;
        a.options.lanes = lanes;
      });
    }
  }
  for (const int lanes : {1, 2, 128, 4096}) {
    ExpectRight([=](Arguments& a) {
      a.options.algorithm = Algorithm::kLaneSort;
      a.options.lanes = lanes;
    });
  }
}

TEST_F(TopKErrors, DepthSchedules) {
  const std::vector<std::vector<int>> bad = {{0}, {-1}, {2, 2}, {3, 2}, {1, 4, 4}, {5, 6, 1}};
  for (const std::vector<int>& schedule : bad) {
    for (const Algorithm algorithm : {Algorithm::kLaneSort, Algorithm::kAuto}) {
      Expect(Code::kBadOption, {"depth_schedule"}, [&](Arguments& a) {
        a.options.algorithm = algorithm;
        a.schedule = schedule;
      });
    }
  }
  for (const std::vector<int>& schedule :
       {std::vector{1}, std::vector{1, 2, 3}, std::vector{std::numeric_limits<int>::max()}}) {
    ExpectRight([&](Arguments& a) {
      a.options.algorithm = Algorithm::kLaneSort;
      a.schedule = schedule;
    });
  }
}

TEST_F(TopKErrors, Algorithm) {
  Expect(Code::kBadOption, {"algorithm", "9"},
         [](Arguments& a) { a.options.algorithm = static_cast<Algorithm>(9); });
}

TEST_F(TopKErrors, OutputsThatOverlapThemselves) {
  for (const int64_t stride : {0, 1, 3, -1, -3}) {
    Expect(Code::kOverlap, {"values"}, [=](Arguments& a) { a.out.values_stride = stride; });
    Expect(Code::kOverlap, {"indices"}, [=](Arguments& a) { a.out.indices_stride = stride; });
  }
  // A single row has no next row that it could overlap.
  ExpectRight([](Arguments& a) {
    a.x.rows = 1;
    a.out.values_stride = 0;
    a.out.indices_stride = 0;
  });
}

TEST_F(TopKErrors, OutputsThatOverlapEachOther) {
  Expect(Code::kOverlap, {"values", "indices"}, [&](Arguments& a) { a.out.values = At(16384); });
  // An overlap of one byte, at either end.
  const int64_t size = kRows * kK * 4;
  Expect(Code::kOverlap, {"values", "indices"},
         [&](Arguments& a) { a.out.values = At(16384 + size - 1); });
  Expect(Code::kOverlap, {"values", "indices"},
         [&](Arguments& a) { a.out.values = At(16384 - size + 1); });
  Expect(Code::kOverlap, {"stats", "indices"},
         [&](Arguments& a) { a.out.stats = reinterpret_cast<TopKStats*>(At(16384)); });
  Expect(Code::kOverlap, {"stats", "values"}, [&](Arguments& a) { a.out.values = At(24576); });
  ExpectRight([&](Arguments& a) { a.out.values = At(16384 + size); });
  ExpectRight([&](Arguments& a) { a.out.values = At(16384 - size); });
}

TEST_F(TopKErrors, OutputsThatOverlapTheInput) {
  Expect(Code::kOverlap, {"values", "x"}, [&](Arguments& a) { a.out.values = At(1024); });
  Expect(Code::kOverlap, {"indices", "x"}, [&](Arguments& a) { a.out.indices = IntsAt(1024); });
  Expect(Code::kOverlap, {"stats", "x"},
         [&](Arguments& a) { a.out.stats = reinterpret_cast<TopKStats*>(At(1024)); });
  const int64_t end = 1024 + kRows * kCols * 4;
  Expect(Code::kOverlap, {"values", "x"}, [&](Arguments& a) { a.out.values = At(end - 1); });
  ExpectRight([&](Arguments& a) { a.out.values = At(end); });
  // The rows of a negative stride lie before the pointer.
  Expect(Code::kOverlap, {"values", "x"}, [&](Arguments& a) {
    a.x.data = At(1024 + 2 * kCols * 4);
    a.x.row_stride = -kCols;
    a.out.values = At(1024);
  });
  // The k per row are read while rows are written.
  Expect(Code::kOverlap, {"indices", "k"}, [&](Arguments& a) {
    a.ks = {4, 4, 4};
    a.out.indices = a.ks.data();
  });
}

// Outputs may be interleaved with each other and with the input if they share no byte.
TEST_F(TopKErrors, InterleavedOutputsAreRight) {
  ExpectRight([&](Arguments& a) {
    a.x = {At(0), DType::kF32, kRows, kCols, 64};
    a.out.values = At(kCols * 4);
    a.out.values_stride = 64;
    a.out.indices = IntsAt(kCols * 4 + kK * 4);
    a.out.indices_stride = 64;
  });
  Expect(Code::kOverlap, {"values", "x"}, [&](Arguments& a) {
    a.x = {At(0), DType::kF32, kRows, kCols, 64};
    a.out.values = At(kCols * 4 - 4);
    a.out.values_stride = 64;
  });
}

TEST_F(TopKErrors, NoRowsIsNoCall) {
  Arguments arguments = Right();
  arguments.x = {nullptr, DType::kF32, 0, kCols, kCols};
  arguments.out = {};
  const std::vector<uint8_t> before = memory_;
  arguments.Run();
  TopK(arguments.x, std::span<const int32_t>(), arguments.out);
  EXPECT_EQ(memory_, before);
  // Other wrong arguments are still refused.
  arguments.k = 0;
  EXPECT_THROW(arguments.Run(), Error);
}

TEST_F(TopKErrors, Plans) {
  EXPECT_THROW(PlanTopK(0, 1), Error);
  EXPECT_THROW(PlanTopK(int64_t{1} << 31, 1), Error);
  EXPECT_THROW(PlanTopK(10, 11), Error);
  EXPECT_THROW(PlanTopK(10, 0), Error);
  EXPECT_THROW(PlanTopK(10, 1, -1), Error);
  EXPECT_THROW(PlanTopK(10, 1, 1, 5), Error);
  EXPECT_THROW(PlanTopK(10, 1, 1, 8, std::vector{2, 1}), Error);
  EXPECT_THROW(DepthProbabilities(0), Error);
  EXPECT_THROW(DepthProbabilities(65537), Error);
  EXPECT_THROW(DepthProbabilities(64, 0), Error);
}

}  // namespace
}  // namespace riffle::test
