#include "cli/sample_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "cli/huge_buffer.h"
#include "riffle/roofline.h"
#include "riffle/sampling.h"
#include "testing/sampling_reference.h"

namespace riffle::cli {
namespace {

constexpr int64_t kCheckedRows = 4;
constexpr int64_t kCheckedDraws = 16;  // of each case

}  // namespace

std::vector<SampleCase> SampleCases() {
  return {{.name = "top-k-64-top-p", .top_k = 64, .top_p = 0.95f},
          {.name = "and-logprobs", .top_k = 64, .top_p = 0.95f, .logprobs = true},
          {.name = "no-filter"},
          {.name = "min-p", .min_p = 0.05f},
          {.name = "top-p", .top_p = 0.95f},
          {.name = "top-p-wide", .top_p = 0.95f, .deviation = 1},
          {.name = "top-p-peaked", .top_p = 0.95f, .deviation = 2.5f, .high = 8},
          {.name = "top-k-2000-top-p", .top_k = 2000, .top_p = 0.95f},
          {.name = "bfloat16-top-k-64-top-p",
           .top_k = 64,
           .top_p = 0.95f,
           .dtype = DType::kBF16,
           .rows = 16}};
}

RooflineLine RunSampleCase(const SampleCase& what, double min_seconds, ThreadPool* pool) {
  const auto elements = static_cast<size_t>(what.rows * what.vocab);
  const HugeBuffer memory(elements * SizeOf(what.dtype));
  std::mt19937_64 generator(5);
  std::normal_distribution<float> normal(0, what.deviation);
  const auto store = [&](size_t i, float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const auto upper = static_cast<uint16_t>(bits >> 16);  // bf16, truncated
    const bool whole = what.dtype == DType::kF32;
    std::memcpy(memory.data() + i * SizeOf(what.dtype),
                whole ? static_cast<const void*>(&bits) : static_cast<const void*>(&upper),
                SizeOf(what.dtype));
  };
  for (size_t i = 0; i < elements; ++i) {
    store(i, normal(generator));
  }
  for (int64_t i = 0; i < what.rows * what.high; ++i) {
    const auto column = static_cast<int64_t>(generator() % static_cast<uint64_t>(what.vocab));
    store(static_cast<size_t>(i / what.high * what.vocab + column),
          16 + static_cast<float>(i % what.high) / 16);
  }

  const MatrixView x = {memory.data(), what.dtype, what.rows, what.vocab, what.vocab};
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
  roofline.call = [&] { Sample(x, tokens, logprobs, options); };
  roofline.read = [&] { ReadMax(memory.data(), memory.bytes(), {.pool = pool}); };

  std::vector<test::ExactDistribution> exact;
  for (int64_t row = 0; row < std::min(what.rows, kCheckedRows); ++row) {
    exact.push_back(test::ReferenceDistribution(
        x, row, {.top_k = what.top_k, .top_p = what.top_p, .min_p = what.min_p}));
  }
  for (; position[0] < kCheckedDraws; ++position[0]) {
    roofline.call();
    for (size_t row = 0; row < exact.size(); ++row) {
      const auto allowed = exact[row].columns.begin() + exact[row].most;
      const double logprob = test::ReferenceLogProb(x, static_cast<int64_t>(row), tokens[row]);
      if (std::find(exact[row].columns.begin(), allowed, tokens[row]) == allowed ||
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
