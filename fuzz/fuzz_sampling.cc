// Sample against the reference in double: any logits, any parameters. A drawn column must be among
// those that the filters leave, have the right log-probability and be drawn as often as its
// probability says, with the same bits for any threads, batch and alignment. A row without answer,
// or a parameter outside its limits, must throw and write nothing; on request the row gets token -1
// and changes no other. Filters in place must keep the columns that may be drawn.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "fuzz/bytes.h"
#include "riffle/error.h"
#include "riffle/runtime.h"
#include "riffle/sampling.h"
#include "testing/buffers.h"
#include "testing/reference.h"
#include "testing/sampling_reference.h"
#include "testing/text.h"

namespace riffle::fuzz {
namespace {

using test::SampleParameters;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int32_t kUnwritten = -7;

[[noreturn]] void Die(const std::string& text) {
  std::fprintf(stderr, "on %s, %s\n", Target().c_str(), text.c_str());
  std::abort();
}

std::string Describe(const SampleParameters& p) {
  return test::Concat("temperature=", p.temperature, " top_k=", p.top_k, " top_p=", p.top_p,
                      " min_p=", p.min_p);
}

bool IsShare(float value) { return value >= 0 && value <= 1; }

bool IsValid(const SampleParameters& p) {
  return p.temperature >= 0 && std::isfinite(p.temperature) && p.top_k >= 0 && IsShare(p.top_p) &&
         IsShare(p.min_p);
}

// Usually a number that somebody could ask for; sometimes any bits.
float TakeTemperature(Bytes& bytes) {
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  constexpr float kMost = std::numeric_limits<float>::max();
  constexpr float kUsual[] = {0,     kLeast, 1e-20f,  1e-3f,    0.3f,  1,
                              1.25f, 50,     0x1p99f, 0x1p100f, 3e38f, kMost};
  const size_t which = bytes.Take<uint8_t>() % (std::size(kUsual) + 4);
  return which < std::size(kUsual) ? kUsual[which] : bytes.Take<float>();
}

float TakeShare(Bytes& bytes) {
  constexpr float kUsual[] = {0, 1e-45f, 1e-30f, 1e-6f, 0.05f, 0.5f, 0.9f, 0.999f, 0.99999994f, 1};
  const size_t which = bytes.Take<uint8_t>() % (std::size(kUsual) + 4);
  if (which < std::size(kUsual)) return kUsual[which];
  return bytes.OneIn(8) ? bytes.Take<float>() : bytes.Take<uint16_t>() / 65535.0f;
}

SampleParameters TakeParameters(Bytes& bytes, int64_t n) {
  SampleParameters p;
  p.temperature = TakeTemperature(bytes);
  const int kind = bytes.Take<uint8_t>() % 8;
  p.top_k = kind < 3    ? 0
            : kind == 3 ? bytes.Take<int32_t>()
                        : static_cast<int32_t>(bytes.Between(1, n + 1));
  p.top_p = bytes.OneIn(3) ? 1 : TakeShare(bytes);
  p.min_p = bytes.OneIn(3) ? 0 : TakeShare(bytes);
  return p;
}

test::InputSpec TakeInput(Bytes& bytes) {
  test::InputSpec spec;
  spec.dtype = static_cast<DType>(bytes.Take<uint8_t>() % 3);
  spec.rows = bytes.Between(1, 4);
  // 1024 candidates are sorted, 2048 columns are a block of sums, 16384 have a window.
  spec.n = bytes.OneIn(2)   ? bytes.Between(1, 80)
           : bytes.OneIn(4) ? bytes.Between(16384, 18500)
                            : bytes.Between(1000, 5000);
  spec.row_stride = spec.n + bytes.Take<uint8_t>() % 3;
  spec.k = bytes.Between(1, spec.n);
  spec.shift = bytes.Take<uint8_t>() % 64;
  spec.at_end = !bytes.OneIn(2);
  spec.seed = bytes.Take<uint16_t>();
  const int distribution = bytes.Take<uint8_t>() % (2 * test::kDistributions);
  spec.distribution = static_cast<test::Distribution>(distribution % test::kDistributions);
  if (distribution >= test::kDistributions) spec.raw = {0};  // replaced by the rest of the bytes
  return spec;
}

// What the contract makes of a row.
enum class Row { kSampled, kHasNaN, kNothing };
Row KindOf(const MatrixView& x, int64_t row) {
  const double best =
      test::Decode(x.dtype, test::ElementAt(x, row, test::ReferenceTopK(x, row, 0, x.cols, 1)[0]));
  return std::isnan(best) ? Row::kHasNaN : best == -kInfinity ? Row::kNothing : Row::kSampled;
}

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;

  explicit Drawn(int64_t rows)
      : tokens(static_cast<size_t>(rows), kUnwritten),
        logprobs(static_cast<size_t>(rows), static_cast<float>(kUnwritten)) {}
  bool operator==(const Drawn& other) const {
    return tokens == other.tokens && std::memcmp(logprobs.data(), other.logprobs.data(),
                                                 logprobs.size() * sizeof(float)) == 0;
  }
};

class Case {
 public:
  Case(const test::Input& input, std::vector<SampleParameters> parameters, uint64_t seed,
       int threads)
      : x_(input.view()),
        what_(Describe(input.spec())),
        parameters_(std::move(parameters)),
        seed_(seed),
        threads_(threads) {
    for (const SampleParameters& p : parameters_) {
      temperature_.push_back(p.temperature);
      top_k_.push_back(p.top_k);
      top_p_.push_back(p.top_p);
      min_p_.push_back(p.min_p);
      streams_.push_back(static_cast<int64_t>(streams_.size()) * 1000003);
    }
  }

  void Run() {
    const bool valid = std::ranges::all_of(parameters_, IsValid);
    if (valid) {
      CheckInvalidRows();
      if (x_.dtype == DType::kF32) CheckFilters();
    }
    Row kind = Row::kSampled;
    for (int64_t row = 0; row < x_.rows && kind == Row::kSampled; ++row) kind = KindOf(x_, row);
    Drawn drawn(x_.rows);
    ThreadPool pool(threads_);
    try {
      Sample(x_, drawn.tokens, drawn.logprobs, Options(0, x_.rows, &pool));
    } catch (const Error& error) {
      const Code expected = valid ? Code::kBadValue : Code::kBadOption;
      if ((valid && kind == Row::kSampled) || error.code() != expected) {
        Die(test::Concat(what_, ": ", error.what()));
      }
      if (!(drawn == Drawn(x_.rows))) Die(what_ + ": wrote before it threw");
      return;
    }
    if (!valid || kind != Row::kSampled) Die(what_ + ": did not throw");
    ThreadPool alone(1);
    for (int64_t row = 0; row < x_.rows; ++row) {
      CheckRow(row, drawn);
      CheckAlone(row, drawn, alone);
    }
  }

 private:
  // With InvalidRow::kToken no row fails, and each has the same result as by itself.
  void CheckInvalidRows() {
    Drawn drawn(x_.rows);
    ThreadPool pool(threads_), alone(1);
    SampleOptions options = Options(0, x_.rows, &pool);
    options.on_invalid = InvalidRow::kToken;
    std::vector<float> best(static_cast<size_t>(x_.rows));
    std::vector<int32_t> best_tokens(best.size());
    Sample(x_, drawn.tokens, drawn.logprobs, {1, {best.data(), 1}, {best_tokens.data(), 1}},
           options);
    for (int64_t row = 0; row < x_.rows; ++row) {
      const auto r = static_cast<size_t>(row);
      const bool sampled = KindOf(x_, row) == Row::kSampled;
      const int32_t top = test::ReferenceTopK(x_, row, 0, x_.cols, 1)[0];
      if ((drawn.tokens[r] >= 0) != sampled || std::isnan(drawn.logprobs[r]) == sampled ||
          best_tokens[r] != (sampled ? top : -1)) {
        DieAt(row, test::Concat("token ", drawn.tokens[r], ", best token ", best_tokens[r]));
      }
      if (sampled) CheckAlone(row, drawn, alone);
    }
  }

  // Filters in place keep what the filters leave at a temperature of 1.
  void CheckFilters() {
    const auto n = static_cast<size_t>(x_.cols);
    std::vector<float> y(static_cast<size_t>(x_.rows) * n);
    for (int64_t row = 0; row < x_.rows; ++row) {
      std::memcpy(y.data() + static_cast<size_t>(row) * n, test::ElementAt(x_, row, 0),
                  n * sizeof(float));
    }
    ThreadPool pool(threads_);
    ApplyTopKTopP({y.data(), x_.cols}, x_.rows, x_.cols,
                  {.top_k = top_k_, .top_p = top_p_, .min_p = min_p_, .pool = &pool});
    for (int64_t row = 0; row < x_.rows; ++row) {
      const float* const z = y.data() + static_cast<size_t>(row) * n;
      if (KindOf(x_, row) != Row::kSampled) {
        if (std::memcmp(z, test::ElementAt(x_, row, 0), n * sizeof(float)) != 0) {
          DieAt(row, "a row without an answer was filtered");
        }
        continue;
      }
      SampleParameters p = parameters_[static_cast<size_t>(row)];
      p.temperature = 1;
      const test::ExactDistribution exact = test::ReferenceDistribution(x_, row, p);
      for (int64_t i = 0; i < x_.cols; ++i) {
        const int32_t column = exact.columns[static_cast<size_t>(i)];
        const bool dropped = static_cast<double>(z[column]) == -kInfinity;
        const bool weighs = exact.weights[static_cast<size_t>(i)] > 1e-37;
        const bool was = test::Decode(x_.dtype, test::ElementAt(x_, row, column)) != -kInfinity;
        if (i < exact.least ? dropped && weighs : i >= exact.most && was && !dropped) {
          DieAt(row,
                test::Concat("column ", column, ", number ", i, dropped ? ", dropped" : ", kept"));
        }
      }
    }
  }

  SampleOptions Options(int64_t first, int64_t rows, ThreadPool* pool) const {
    const auto of = [&](const auto& list) {
      return std::span(list).subspan(static_cast<size_t>(first), static_cast<size_t>(rows));
    };
    return {.temperature = of(temperature_),
            .top_k = of(top_k_),
            .top_p = of(top_p_),
            .min_p = of(min_p_),
            .seed = seed_,
            .stream = of(streams_),
            .pool = pool};
  }

  [[noreturn]] void DieAt(int64_t row, const std::string& fault) const {
    Die(test::Concat(what_, " | row ", row, " ", Describe(parameters_[static_cast<size_t>(row)]),
                     ": ", fault));
  }

  void CheckRow(int64_t row, const Drawn& drawn) {
    const auto r = static_cast<size_t>(row);
    const int32_t token = drawn.tokens[r];
    if (token < 0 || token >= x_.cols) DieAt(row, test::Concat("drew ", token));
    const test::ExactDistribution exact = test::ReferenceDistribution(x_, row, parameters_[r]);
    const auto allowed = exact.columns.begin() + exact.most;
    if (std::find(exact.columns.begin(), allowed, token) == allowed) {
      DieAt(row, test::Concat("drew column ", token, ", which is none of the best ", exact.most));
    }
    const double truth = test::ReferenceLogProb(x_, row, token);
    const auto got = static_cast<double>(drawn.logprobs[r]);
    if (!(got == truth || std::abs(got - truth) <= 1e-6 * (1 + std::abs(truth)))) {
      DieAt(row, test::Concat("log-probability ", got, " where ", truth, " is right"));
    }
    // Events of probability 1e-6 do happen here, so a failure counts only if it happens again.
    if (exact.least == exact.most && Excess(row, exact, 60, 0) > 0 &&
        Excess(row, exact, 4000, 60) > 0) {
      DieAt(row, "the draws do not follow the distribution");
    }
  }

  double Excess(int64_t row, const test::ExactDistribution& exact, int64_t count,
                int64_t first_position) {
    MatrixView repeated = x_;
    repeated.data = test::ElementAt(x_, row, 0);
    repeated.rows = count;
    repeated.row_stride = 0;
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < count; ++i) positions.push_back(first_position + i);
    SampleOptions options = Options(row, 1, nullptr);
    options.position = positions;
    std::vector<int32_t> tokens(positions.size());
    Sample(repeated, tokens, options);
    return test::ChiSquaredExcess(exact, tokens);
  }

  // A row by itself, at another alignment, gives the same bits.
  void CheckAlone(int64_t row, const Drawn& drawn, ThreadPool& pool) const {
    const size_t bytes = static_cast<size_t>(x_.cols) * SizeOf(x_.dtype);
    std::vector<uint8_t> copy(bytes + 1);
    std::memcpy(copy.data() + 1, test::ElementAt(x_, row, 0), bytes);
    Drawn one(1);
    Sample({copy.data() + 1, x_.dtype, 1, x_.cols, x_.cols}, one.tokens, one.logprobs,
           Options(row, 1, &pool));
    const auto r = static_cast<size_t>(row);
    if (one.tokens[0] != drawn.tokens[r] ||
        std::bit_cast<uint32_t>(one.logprobs[0]) != std::bit_cast<uint32_t>(drawn.logprobs[r])) {
      DieAt(row,
            test::Concat("drew ", drawn.tokens[r], " in the batch and ", one.tokens[0], " alone"));
    }
  }

  MatrixView x_;
  std::string what_;
  std::vector<SampleParameters> parameters_;
  uint64_t seed_;
  int threads_;
  std::vector<float> temperature_, top_p_, min_p_;
  std::vector<int32_t> top_k_;
  std::vector<int64_t> streams_;
};

void Run(Bytes& bytes) {
  static const std::vector<std::string> targets = Targets();
  SetTarget(targets[bytes.Take<uint8_t>() % targets.size()]);
  test::InputSpec spec = TakeInput(bytes);
  std::vector<SampleParameters> parameters;
  for (int64_t row = 0; row < spec.rows; ++row) parameters.push_back(TakeParameters(bytes, spec.n));
  const auto seed = bytes.Take<uint64_t>();
  const int threads = 1 + bytes.Take<uint8_t>() % 3;
  if (!spec.raw.empty()) {
    spec.raw = bytes.Rest();
    if (spec.raw.empty()) spec.raw = {0};
  }
  Case(test::Input(spec), parameters, seed, threads).Run();
}

}  // namespace
}  // namespace riffle::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  riffle::fuzz::Bytes bytes(data, size);
  riffle::fuzz::Run(bytes);
  return 0;
}
