// CompressKv against softmax pooling, RMS norm and RoPE in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "riffle/compress_kv.h"
#include "riffle/error.h"
#include "testing/reference.h"
#include "testing/rng.h"
#include "testing/targets.h"
#include "testing/topk_check.h"

namespace riffle::test {
namespace {

// A matrix of a dtype and what it holds.
struct Matrix {
  std::vector<uint8_t> bytes;
  std::vector<double> values;
  MatrixView view;

  Matrix(DType dtype, int64_t rows, int64_t cols, Rng& rng) {
    const auto element = static_cast<int64_t>(SizeOf(dtype));
    const int64_t stride = cols + 5;
    bytes.assign(static_cast<size_t>(rows * stride * element), 0xff);
    for (int64_t i = 0; i < rows * cols; ++i) {
      uint8_t* at = bytes.data() + (i / cols * stride + i % cols) * element;
      Store(dtype, Encode(dtype, static_cast<float>(6 * rng.Unit() - 3)), at);
      values.push_back(Decode(dtype, at));
    }
    view = {bytes.data(), dtype, rows, cols, stride};
  }
  double At(int64_t row, int64_t col) const {
    return values[static_cast<size_t>(row * view.cols + col)];
  }
};

std::vector<float> Floats(int64_t count, Rng& rng) {
  std::vector<float> x;
  for (int64_t i = 0; i < count; ++i) x.push_back(static_cast<float>(2 * rng.Unit() - 1));
  return x;
}

// Entry `number` of a sequence whose own window begins at row `token`.
std::vector<double> Entry(const Matrix& kv, const Matrix& gates, const CompressOptions& options,
                          int64_t token, int64_t number) {
  const int64_t cols = kv.view.cols;
  const int64_t dim = options.overlap ? cols / 2 : cols;
  std::vector<double> entry;
  for (int64_t c = 0; c < dim; ++c) {
    std::vector<std::pair<double, double>> terms;  // gate, value
    const auto window = [&](int64_t first, int64_t column) {
      for (int64_t j = 0; j < options.ratio; ++j) {
        const double bias = options.gate_bias != nullptr ? options.gate_bias[j * cols + column] : 0;
        terms.emplace_back(gates.At(first + j, column) + bias, kv.At(first + j, column));
      }
    };
    if (options.overlap && number > 0) window(token - options.ratio, c);
    window(token, options.overlap ? dim + c : c);
    double largest = -INFINITY, sum = 0, weight = 0;
    for (const auto& [gate, value] : terms) largest = std::max(largest, gate);
    for (const auto& [gate, value] : terms) {
      weight += std::exp(gate - largest);
      sum += std::exp(gate - largest) * value;
    }
    entry.push_back(sum / weight);
  }
  if (options.norm) {
    double squares = 0;
    for (const double x : entry) squares += x * x;
    const double root = std::sqrt(squares / static_cast<double>(dim) + double{options.norm_eps});
    for (int64_t c = 0; c < dim; ++c) {
      entry[static_cast<size_t>(c)] *=
          (options.norm_weight != nullptr ? double{options.norm_weight[c]} : 1.0) / root;
    }
  }
  if (const RopeTable& rope = options.rope; rope.cos_sin != nullptr) {
    const float* row = rope.cos_sin + number * options.ratio * rope.row_stride;
    for (int64_t i = 0; i < rope.dim / 2; ++i) {
      double& a = entry[static_cast<size_t>(dim - rope.dim + 2 * i)];
      double& b = entry[static_cast<size_t>(dim - rope.dim + 2 * i + 1)];
      const double cosine = row[i], sine = row[rope.dim / 2 + i], x = a;
      a = x * cosine - b * sine;
      b = x * sine + b * cosine;
    }
  }
  return entry;
}

// A token of an entry's window and the entry's number.
using Entries = std::vector<std::pair<int64_t, int64_t>>;

void CheckCall(const Matrix& kv, const Matrix& gates, const CompressOptions& options,
               const Entries& entries, const std::string& what) {
  const int64_t dim = options.overlap ? kv.view.cols / 2 : kv.view.cols;
  const auto element = static_cast<int64_t>(SizeOf(kv.view.dtype));
  ASSERT_EQ(CompressedEntries(kv.view.rows, options), static_cast<int64_t>(entries.size())) << what;
  const int64_t stride = dim + 3;
  std::vector<uint8_t> out(static_cast<size_t>(stride * element) * (entries.size() + 1), 0x55);
  CompressKv(kv.view, gates.view, {out.data(), stride}, options);
  for (size_t e = 0; e < entries.size(); ++e) {
    const std::vector<double> want = Entry(kv, gates, options, entries[e].first, entries[e].second);
    const uint8_t* row = out.data() + static_cast<int64_t>(e) * stride * element;
    for (int64_t c = 0; c < dim; ++c) {
      const double x = want[static_cast<size_t>(c)];
      const double unit = kv.view.dtype == DType::kF32   ? 0
                          : kv.view.dtype == DType::kF16 ? 0x1p-11
                                                         : 0x1p-8;
      ASSERT_NEAR(Decode(kv.view.dtype, row + c * element), x, 2e-5 + std::fabs(x) * unit)
          << what << " entry " << e << " channel " << c;
    }
    for (int64_t i = dim * element; i < stride * element; ++i) ASSERT_EQ(row[i], 0x55);
  }
}

TEST(CompressKv, EveryDTypeRatioAndOverlap) {
  OnEveryTarget([](const std::string& target) {
    Rng rng(3);
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (const int64_t ratio : {1, 4, 128}) {
        for (const bool overlap : {false, true}) {
          const int64_t dim = ratio == 4 ? 512 : 48;
          const int64_t tokens = 5 * ratio + ratio / 2;
          const Matrix kv(dtype, tokens, overlap ? 2 * dim : dim, rng);
          const Matrix gates(ratio == 4 ? DType::kF32 : dtype, tokens, kv.view.cols, rng);
          const std::vector<float> bias = Floats(ratio * kv.view.cols, rng);
          const std::vector<float> weight = Floats(dim, rng);
          const std::vector<float> table = Floats(5 * ratio * 35, rng);
          CompressOptions options;
          options.ratio = ratio;
          options.overlap = overlap;
          options.pool = &PoolOf(ratio == 4 ? 3 : 1);
          Entries entries;
          for (int64_t i = 0; i < tokens / ratio; ++i) entries.emplace_back(i * ratio, i);
          const std::string what = target + " " + Name(dtype) + " ratio " + std::to_string(ratio) +
                                   (overlap ? " overlap" : "");
          CheckCall(kv, gates, options, entries, what + " plain");
          options.gate_bias = bias.data();
          options.norm_weight = weight.data();
          options.rope = {table.data(), 5 * ratio, 32, 35};
          CheckCall(kv, gates, options, entries, what);
          options.norm = false;
          CheckCall(kv, gates, options, entries, what + " without norm");
        }
      }
    }
  });
}

TEST(CompressKv, SequencesAndLaterEntries) {
  Rng rng(4);
  const Matrix kv(DType::kF32, 30, 64, rng), gates(DType::kF32, 30, 64, rng);
  const std::vector<float> table = Floats(200 * 16, rng);
  CompressOptions options;
  options.overlap = true;
  options.rope = {table.data(), 200, 16, 16};
  const std::vector<int32_t> lens = {0, 9, 9, 12, 30}, first = {0, 3, 7, 40};
  options.cu_lens = lens;
  options.first_entries = first;
  // 9 tokens from entry 0 on: two; none; 3 tokens: none; 18 from the window before entry 40 on.
  CheckCall(kv, gates, options, {{0, 0}, {4, 1}, {16, 40}, {20, 41}, {24, 42}}, "sequences");
}

// An entry has the same bits alone and among others, in any number of threads.
TEST(CompressKv, Invariance) {
  OnEveryTarget([](const std::string& target) {
    Rng rng(5);
    const Matrix kv(DType::kF32, 400, 1024, rng), gates(DType::kF32, 400, 1024, rng);
    CompressOptions options;
    options.overlap = true;
    std::vector<float> want(100 * 512), got(100 * 512), one(512);
    options.pool = &PoolOf(1);
    CompressKv(kv.view, gates.view, {want.data(), 512}, options);
    options.pool = &PoolOf(3);
    CompressKv(kv.view, gates.view, {got.data(), 512}, options);
    EXPECT_EQ(got, want) << target;
    MatrixView part = kv.view, part_gates = gates.view;
    part.rows = part_gates.rows = 8;
    part.data = static_cast<const float*>(part.data) + 36 * part.row_stride;
    part_gates.data = static_cast<const float*>(part_gates.data) + 36 * part_gates.row_stride;
    const std::vector<int32_t> first = {10};
    options.first_entries = first;
    CompressKv(part, part_gates, {one.data(), 512}, options);
    EXPECT_EQ(std::memcmp(one.data(), want.data() + 10 * 512, 512 * sizeof(float)), 0) << target;
  });
}

TEST(CompressKv, GatesThatAreNotFinite) {
  std::vector<float> kv(2 * 16, 1.0f), gates(2 * 16, 0.0f), out(16);
  kv[0] = NAN;  // without weight
  gates[0] = -INFINITY;
  kv[16] = 5;
  gates[1] = gates[17] = -INFINITY;
  gates[2] = NAN;
  CompressOptions options;
  options.ratio = 2;
  options.norm = false;
  CompressKv(View(kv.data(), 2, 16), View(gates.data(), 2, 16), {out.data(), 16}, options);
  EXPECT_EQ(out[0], 5);
  EXPECT_TRUE(std::isnan(out[1]));
  EXPECT_TRUE(std::isnan(out[2]));
  EXPECT_EQ(out[3], 1);
}

TEST(CompressKv, Errors) {
  std::vector<float> kv(8 * 64), gates(8 * 64), table(8 * 16);
  const auto refused = [&](const auto& spoil, Code code, const std::string& text) {
    MatrixView a = View(kv.data(), 8, 64), b = View(gates.data(), 8, 64);
    std::vector<float> results(4 * 64, 5.0f);
    OutView<void> out{results.data(), 64};
    CompressOptions options;
    spoil(a, b, out, options);
    try {
      CompressKv(a, b, out, options);
      ADD_FAILURE() << "not refused: " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
    EXPECT_EQ(results, std::vector<float>(4 * 64, 5.0f));
  };
  const std::vector<int32_t> lens = {0, 9}, back = {0, 5, 4, 8}, first = {-1}, two = {0, 0};
  using View = MatrixView;
  using Out = OutView<void>;
  using Options = CompressOptions;
  refused([](View& a, View&, Out&, Options&) { a.dtype = DType::kI8; }, Code::kBadDType,
          "kv is int8");
  refused([](View&, View& b, Out&, Options&) { b.rows = 7; }, Code::kBadShape, "gates.rows = 7");
  refused([](View&, View& b, Out&, Options&) { b.cols = 32; }, Code::kBadShape, "gates.cols = 32");
  refused([](View& a, View& b, Out&, Options& o) { a.cols = b.cols = 48, o.overlap = true; },
          Code::kBadShape, "kv.cols = 48 is not a multiple of 32");
  refused([](View&, View&, Out&, Options& o) { o.ratio = 0; }, Code::kBadOption, "ratio = 0");
  refused([](View&, View&, Out&, Options& o) { o.norm_eps = -1; }, Code::kBadOption,
          "norm_eps = -1");
  refused([&](View&, View&, Out&, Options& o) { o.cu_lens = lens; }, Code::kBadRange,
          "cu_lens runs from 0 to 9");
  refused([&](View&, View&, Out&, Options& o) { o.cu_lens = back; }, Code::kBadRange,
          "cu_lens[1..2] = 5, 4");
  refused([&](View&, View&, Out&, Options& o) { o.first_entries = first; }, Code::kBadRange,
          "first_entries[0] = -1");
  refused([&](View&, View&, Out&, Options& o) { o.first_entries = two; }, Code::kBadShape,
          "first_entries has 2 elements for 1 sequences");
  refused(
      [&](View&, View&, Out&, Options& o) {
        o.rope = {table.data(), 4, 16, 16};
      },
      Code::kBadRange, "rope.positions = 4 but entry 1 is at position 4");
  refused(
      [&](View&, View&, Out&, Options& o) {
        o.rope = {table.data(), 8, 15, 16};
      },
      Code::kBadShape, "rope.dim = 15");
  refused([](View&, View&, Out& out, Options&) { out.data = nullptr; }, Code::kBadShape,
          "out is null");
  refused([](View&, View&, Out& out, Options&) { out.row_stride = 60; }, Code::kOverlap,
          "out overlaps itself");
  refused([&](View&, View&, Out& out, Options&) { out.data = kv.data(); }, Code::kOverlap,
          "out shares memory with kv");
}

}  // namespace
}  // namespace riffle::test
