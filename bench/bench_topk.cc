// Top-k under Google Benchmark, to compare two builds with its tools: bench_topk
// --benchmark_filter=bf16. A benchmark whose answer differs from the scalar reference reports an
// error, not a time.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/distributions.h"
#include "cli/huge_buffer.h"
#include "cli/reference.h"
#include "riffle/riffle.h"

namespace riffle::cli {
namespace {

struct Shape {
  DType dtype;
  int64_t rows;
  int64_t n;
};

// A matrix of normally distributed numbers on 2 MiB pages.
struct Matrix {
  explicit Matrix(const Shape& shape)
      : buffer(static_cast<size_t>(shape.rows * shape.n) * SizeOf(shape.dtype)),
        view{buffer.data(), shape.dtype, shape.rows, shape.n, shape.n} {
    Fill(Distribution::kNormal, shape.dtype, shape.rows, shape.n, /*k=*/64, buffer.data());
  }
  HugeBuffer buffer;
  MatrixView view;
};

void SetCounters(benchmark::State& state, const Matrix& matrix) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(matrix.buffer.bytes()));
  state.SetLabel(
      fmt::format("{}, {} pages", Target(), PagesOf(matrix.buffer.data(), matrix.buffer.bytes())));
}

// The roofline: reading the same bytes to find their maximum.
void BenchRead(benchmark::State& state, const Shape& shape) {
  const Matrix matrix(shape);
  for ([[maybe_unused]] auto step : state) {
    benchmark::DoNotOptimize(ReadMax(matrix.buffer.data(), matrix.buffer.bytes()));
  }
  SetCounters(state, matrix);
}

void BenchTopK(benchmark::State& state, const Shape& shape, int64_t k, Algorithm algorithm) {
  const Matrix matrix(shape);
  std::vector<uint8_t> values(static_cast<size_t>(shape.rows * k) * SizeOf(shape.dtype));
  std::vector<int32_t> indices(static_cast<size_t>(shape.rows * k));
  const TopKOut out{values.data(), k, indices.data(), k, nullptr};
  TopKOptions options;
  options.algorithm = algorithm;
  TopK(matrix.view, k, out, options);
  const std::string wrong =
      Compare(matrix.view, k, ReferenceTopK(matrix.view, k), k, indices, values.data());
  if (!wrong.empty()) {
    state.SkipWithError(wrong.c_str());
    return;
  }
  for ([[maybe_unused]] auto step : state) {
    TopK(matrix.view, k, out, options);
    benchmark::ClobberMemory();
  }
  SetCounters(state, matrix);
}

void Register(const std::string& name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

void RegisterAll() {
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
    for (const int64_t rows : {int64_t{1}, int64_t{32}}) {
      const Shape shape{dtype, rows, 201088};
      const std::string what = fmt::format("{}/{}x{}", Name(dtype), rows, shape.n);
      Register("read/" + what, [shape](benchmark::State& state) { BenchRead(state, shape); });
      for (const int64_t k : {1, 64, 1024}) {
        Register(fmt::format("bucket_maxima/{}/k:{}", what, k),
                 [shape, k](benchmark::State& state) {
                   BenchTopK(state, shape, k, Algorithm::kBucketMaxima);
                 });
      }
      Register(fmt::format("lane_sort/{}/k:64", what), [shape](benchmark::State& state) {
        BenchTopK(state, shape, 64, Algorithm::kLaneSort);
      });
    }
  }
}

}  // namespace
}  // namespace riffle::cli

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  riffle::cli::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
