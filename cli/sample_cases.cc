#include "cli/sample_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>

#include "cli/huge_buffer.h"
#include "riffle/roofline.h"
#include "riffle/sampling.h"

namespace riffle::cli {
namespace {

constexpr int64_t kCheckedRows = 4;
constexpr int64_t kCheckedDraws = 16;  // of each case

// The columns of a row that may be drawn, found by a full sort in double.
class Allowed {
 public:
  Allowed(std::span<const float> x, const SampleCase& what) : x_(x) {
    std::vector<int32_t> order(x.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return x[Index(a)] > x[Index(b)]; });
    max_ = x[Index(order[0])];
    for (const int32_t column : order) {
      sum_ += Weight(column);
    }
    if (what.top_k > 0) {
      order.resize(std::min(order.size(), static_cast<size_t>(what.top_k)));
    }
    double kept = 0;
    for (const int32_t column : order) {
      kept += Weight(column);
    }
    // The call sums weights in f32 and double, so the column that crosses may differ by one here.
    const double mass = (static_cast<double>(what.top_p) + 1e-6) * kept;
    double reached = 0;
    for (const int32_t column : order) {
      if (reached > mass || Weight(column) < static_cast<double>(what.min_p) * (1 - 1e-6)) {
        break;
      }
      last_ = x[Index(column)];
      last_column_ = column;
      reached += Weight(column);
    }
  }

  bool Has(int32_t column) const {
    const float value = x_[Index(column)];
    return value > last_ || (value == last_ && column <= last_column_);
  }
  double LogProb(int32_t column) const { return std::log(Weight(column) / sum_); }

 private:
  static size_t Index(int32_t column) { return static_cast<size_t>(column); }
  double Weight(int32_t column) const {
    return std::exp(static_cast<double>(x_[Index(column)]) - static_cast<double>(max_));
  }

  std::span<const float> x_;
  float max_ = 0;
  double sum_ = 0;
  float last_ = 0;
  int32_t last_column_ = 0;
};

}  // namespace

std::vector<SampleCase> SampleCases() {
  return {{.name = "top-k-64-top-p", .top_k = 64, .top_p = 0.95f},
          {.name = "and-logprobs", .top_k = 64, .top_p = 0.95f, .logprobs = true},
          {.name = "no-filter"},
          {.name = "min-p", .min_p = 0.05f},
          {.name = "top-p", .top_p = 0.95f},
          {.name = "top-p-wide", .top_p = 0.95f, .deviation = 1},
          {.name = "top-k-2000-top-p", .top_k = 2000, .top_p = 0.95f}};
}

RooflineLine RunSampleCase(const SampleCase& what, double min_seconds, ThreadPool* pool) {
  const auto elements = static_cast<size_t>(what.rows * what.vocab);
  const HugeBuffer memory(elements * sizeof(float));
  auto* const logits = reinterpret_cast<float*>(memory.data());
  std::mt19937_64 generator(5);
  std::normal_distribution<float> normal(0, what.deviation);
  std::generate_n(logits, elements, [&] { return normal(generator); });

  std::vector<int32_t> tokens(static_cast<size_t>(what.rows));
  std::vector<float> logprobs(what.logprobs ? tokens.size() : 0);
  std::vector<int64_t> position = {0};
  SampleOptions options;
  options.top_k = {&what.top_k, 1};
  options.top_p = {&what.top_p, 1};
  options.min_p = {&what.min_p, 1};
  options.position = position;
  options.pool = pool;
  RooflineCase roofline;
  roofline.name = what.name;
  roofline.pages = PagesOf(memory.data(), memory.bytes());
  roofline.bytes = static_cast<double>(memory.bytes());
  roofline.call = [&] {
    Sample({logits, DType::kF32, what.rows, what.vocab, what.vocab}, tokens, logprobs, options);
  };
  roofline.read = [&] { ReadMax(memory.data(), memory.bytes(), {.pool = pool}); };

  std::vector<Allowed> allowed;
  for (int64_t row = 0; row < std::min(what.rows, kCheckedRows); ++row) {
    allowed.emplace_back(
        std::span<const float>(logits + row * what.vocab, static_cast<size_t>(what.vocab)), what);
  }
  for (; position[0] < kCheckedDraws; ++position[0]) {
    roofline.call();
    for (size_t row = 0; row < allowed.size(); ++row) {
      const double logprob = allowed[row].LogProb(tokens[row]);
      if (!allowed[row].Has(tokens[row]) ||
          (what.logprobs && !(std::abs(static_cast<double>(logprobs[row]) - logprob) < 1e-4))) {
        throw std::runtime_error(
            fmt::format("{}: row {}, draw {}: token {} is wrong, or its "
                        "log-probability is not {}",
                        what.name, row, position[0], tokens[row], logprob));
      }
    }
  }
  return MeasureRoofline(roofline, min_seconds, pool);
}

}  // namespace riffle::cli
