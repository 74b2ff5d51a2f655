// Makes the C++ column of bench/front_ends.py: runs one case on the arrays that the script has
// written, writes the answer for the script to check, and prints the median time of the call in
// microseconds.
//
//   bench_front_ends CASE DTYPE DIRECTORY SECONDS NUMBER...
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "riffle/riffle.h"

namespace {

using Bytes = std::vector<uint8_t>;
using riffle::DType;

struct Case {
  DType dtype;
  std::filesystem::path directory;
  double seconds;
  std::vector<int64_t> numbers;  // shapes and options, in the order in which the script passes them

  Bytes Read(const char* name) const {
    const auto path = directory / name;
    Bytes bytes(std::filesystem::file_size(path));
    std::ifstream(path, std::ios::binary)
        .read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return bytes;
  }

  template <typename T>
  std::vector<T> ReadAs(const char* name) const {
    const Bytes bytes = Read(name);
    const auto* first = reinterpret_cast<const T*>(bytes.data());
    return {first, first + bytes.size() / sizeof(T)};
  }

  void Write(const char* name, const void* data, size_t bytes) const {
    std::ofstream(directory / name, std::ios::binary)
        .write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  }

  template <typename T>
  void Write(const char* name, const std::vector<T>& data) const {
    Write(name, data.data(), data.size() * sizeof(T));
  }

  riffle::MatrixView Matrix(const Bytes& x, int64_t rows, int64_t cols) const {
    return {x.data(), dtype, rows, cols, cols};
  }

  // The median time in microseconds of as many calls as fit into `seconds`, at least three.
  double Time(const std::function<void()>& call) const {
    using Clock = std::chrono::steady_clock;
    using Microseconds = std::chrono::duration<double, std::micro>;
    for (int i = 0; i < 3; ++i) {
      call();
    }
    std::vector<double> times;
    const auto end = Clock::now() + std::chrono::duration<double>(seconds);
    while (times.size() < 3 || Clock::now() < end) {
      const auto begin = Clock::now();
      call();
      times.push_back(Microseconds(Clock::now() - begin).count());
    }
    const auto middle = times.begin() + static_cast<ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle;
  }
};

double TopK(const Case& c) {
  const int64_t rows = c.numbers[0], n = c.numbers[1], k = c.numbers[2];
  const Bytes x = c.Read("x");
  Bytes values(static_cast<size_t>(rows * k) * SizeOf(c.dtype));
  std::vector<int32_t> indices(static_cast<size_t>(rows * k));
  const riffle::TopKOut out{
      .values = values.data(), .values_stride = k, .indices = indices.data(), .indices_stride = k};
  const double time = c.Time([&] { riffle::TopK(c.Matrix(x, rows, n), k, out); });
  c.Write("out0", values);
  c.Write("out1", indices);
  return time;
}

double TopKPerRow(const Case& c) {
  const int64_t rows = c.numbers[0], n = c.numbers[1], k = c.numbers[2];
  const Bytes x = c.Read("x");
  const auto starts = c.ReadAs<int32_t>("starts"), ends = c.ReadAs<int32_t>("ends");
  std::vector<int32_t> indices(static_cast<size_t>(rows * k));
  const double time = c.Time([&] {
    riffle::TopKPerRow(c.Matrix(x, rows, n), starts, ends, k, {indices.data(), k});
  });
  c.Write("out0", indices);
  return time;
}

double Sample(const Case& c) {
  const int64_t rows = c.numbers[0], n = c.numbers[1];
  const Bytes x = c.Read("x");
  const auto top_k = static_cast<int32_t>(c.numbers[2]);
  const float temperature = c.numbers[3] != 0 ? 0.0F : 1.0F;  // greedy
  const float top_p = top_k != 0 ? 0.95F : 1.0F;
  const riffle::SampleOptions options{
      .temperature = {&temperature, 1}, .top_k = {&top_k, 1}, .top_p = {&top_p, 1}, .seed = 1};
  std::vector<int32_t> tokens(static_cast<size_t>(rows));
  const double time = c.Time([&] { riffle::Sample(c.Matrix(x, rows, n), tokens, options); });
  c.Write("out0", tokens);
  return time;
}

double LinearTopK(const Case& c) {
  const int64_t rows = c.numbers[0], d = c.numbers[1], vocab = c.numbers[2], k = c.numbers[3];
  const Bytes x = c.Read("x"), weight = c.Read("weight");
  const riffle::WeightView view{
      weight.data(),
      c.dtype == DType::kF32 ? riffle::WeightFormat::kF32 : riffle::WeightFormat::kBF16, vocab, d,
      d};
  std::vector<float> values(static_cast<size_t>(rows * k));
  std::vector<int32_t> indices(values.size());
  const riffle::LinearTopKOut out{values.data(), k, indices.data(), k};
  const double time = c.Time([&] { riffle::LinearTopK(c.Matrix(x, rows, d), view, k, out); });
  c.Write("out0", values);
  c.Write("out1", indices);
  return time;
}

double PagedAttention(const Case& c) {
  const int64_t tokens = c.numbers[0], heads = c.numbers[1], d = c.numbers[2];
  const int64_t pages = c.numbers[3], kv_heads = c.numbers[4], size = c.numbers[5];
  const Bytes q = c.Read("q"), keys = c.Read("keys"), values = c.Read("values");
  const auto lens = c.ReadAs<int32_t>("kv_lens"), table = c.ReadAs<int32_t>("page_table");
  const int64_t max_pages = static_cast<int64_t>(table.size() / lens.size());
  const auto view = [&](const Bytes& data) {
    return riffle::PagedKv{data.data(),         c.dtype, pages,   size, kv_heads, d,
                           kv_heads * size * d, d,       size * d};
  };
  Bytes result(q.size());
  const riffle::PagedBatch batch{.cu_q_lens = {},
                                 .kv_lens = lens,
                                 .page_table = table.data(),
                                 .max_pages = max_pages,
                                 .page_table_stride = max_pages};
  const double time = c.Time([&] {
    riffle::PagedAttention({q.data(), c.dtype, tokens, heads, d, heads * d, d}, view(keys),
                           view(values), batch,
                           {.data = result.data(), .token_stride = heads * d, .head_stride = d});
  });
  c.Write("out0", result);
  return time;
}

double KvWrite(const Case& c) {
  const int64_t tokens = c.numbers[0], kv_heads = c.numbers[1], d = c.numbers[2];
  const Bytes keys = c.Read("keys"), values = c.Read("values");
  riffle::KvCache cache({.kv_heads = kv_heads,
                         .head_dim = d,
                         .pages = c.numbers[3],
                         .page_size = c.numbers[4],
                         .dtype = c.dtype});
  const int64_t sequence = cache.Create();
  cache.Extend(sequence, tokens);
  const auto view = [&](const Bytes& data) {
    return riffle::HeadsView{data.data(), c.dtype, tokens, kv_heads, d, kv_heads * d, d};
  };
  const double time = c.Time([&] { cache.Write(0, sequence, 0, view(keys), view(values)); });
  c.Write("out0", cache.Keys(0).data, keys.size());  // the pages of a new cache are in order
  c.Write("out1", cache.Values(0).data, values.size());
  return time;
}

double Run(const std::string& name, const Case& c) {
  if (name == "top_k") return TopK(c);
  if (name == "top_k_per_row") return TopKPerRow(c);
  if (name == "sample") return Sample(c);
  if (name == "linear_top_k") return LinearTopK(c);
  if (name == "paged_attention") return PagedAttention(c);
  if (name == "kv_write") return KvWrite(c);
  throw std::invalid_argument("no case " + name);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 5) {
      throw std::invalid_argument("CASE DTYPE DIRECTORY SECONDS NUMBER...");
    }
    Case c{std::string(argv[2]) == "float32" ? DType::kF32 : DType::kBF16,
           argv[3],
           std::stod(argv[4]),
           {}};
    for (const char* number : std::span(argv, static_cast<size_t>(argc)).subspan(5)) {
      c.numbers.push_back(std::stoll(number));
    }
    std::printf("%.6f\n", Run(argv[1], c));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_front_ends: %s\n", error.what());
    return 1;
  }
}
