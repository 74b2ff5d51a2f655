#include "cli/linear_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

#include "cli/huge_buffer.h"
#include "cli/numbers.h"
#include "riffle/roofline.h"
#include "riffle/runtime.h"

namespace riffle::cli {
namespace {

constexpr double kQuickBytes = 200e6;
constexpr int64_t kCheckedRows = 3;

uint64_t Next(uint64_t& state) {  // xorshift64 (Marsaglia 2003)
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

// A table of normally distributed bf16 numbers to draw from.
std::vector<uint16_t> NormalTable(float deviation) {
  std::mt19937_64 generator(7);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<uint16_t> table(1 << 16);
  for (size_t i = 0; i < table.size(); ++i) {
    StoreFloat(normal(generator), table.data(), DType::kBF16, static_cast<int64_t>(i));
  }
  return table;
}

void FillBF16(uint8_t* to, int64_t count, float deviation, uint64_t seed) {
  const std::vector<uint16_t> table = NormalTable(deviation);
  uint64_t state = seed;
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + 2 * i, &table[Next(state) >> 48], 2);
  }
}

// Blocks of uniformly distributed integers with scales of 0.0039 to 0.0078.
void FillQ8(uint8_t* to, int64_t blocks) {
  uint64_t state = 3;
  for (int64_t block = 0; block < blocks; ++block, to += kQ8BlockBytes) {
    const auto scale = static_cast<uint16_t>(0x1c00 + (Next(state) & 0x3ff));
    std::memcpy(to, &scale, sizeof(scale));
    for (int i = 0; i < kQ8Block; i += 8) {
      const uint64_t bytes = Next(state);
      std::memcpy(to + 2 + i, &bytes, sizeof(bytes));
    }
  }
}

// The weights of an LM head in memory.
struct Head {
  LinearMatrix what;
  HugeBuffer memory;
  WeightView weight;

  explicit Head(const LinearMatrix& matrix)
      : what(matrix), memory(static_cast<size_t>(matrix.bytes())) {
    const bool q8 = what.format == WeightFormat::kQ8_0;
    if (q8) {
      FillQ8(memory.data(), what.vocab * what.d / kQ8Block);
    } else {
      FillBF16(memory.data(), what.vocab * what.d, 0.02f, 1);
    }
    weight = {memory.data(), what.format, what.vocab, what.d, q8 ? what.d / kQ8Block : what.d, 1};
  }

  // x . W[token], exact up to the rounding of doubles. *magnitude: the sum of the products'
  // magnitudes.
  double Logit(const float* x, int64_t token, double* magnitude) const {
    double sum = 0;
    *magnitude = 0;
    const bool q8 = what.format == WeightFormat::kQ8_0;
    const int64_t row_bytes = q8 ? what.d / kQ8Block * kQ8BlockBytes : 2 * what.d;
    const uint8_t* row = memory.data() + token * row_bytes;
    for (int64_t i = 0; i < what.d; ++i) {
      double weight_value = 0;
      if (q8) {  // the scales are normal numbers
        const uint8_t* block = row + i / kQ8Block * kQ8BlockBytes;
        uint16_t scale;
        std::memcpy(&scale, block, sizeof(scale));
        weight_value = std::ldexp(1024 + (scale & 0x3ff), (scale >> 10) - 25) *
                       static_cast<int8_t>(block[2 + i % kQ8Block]);
      } else {
        weight_value = LoadFloat(row, DType::kBF16, i);
      }
      const double term = weight_value * double{x[i]};
      sum += term;
      *magnitude += std::abs(term);
    }
    return sum;
  }
};

// Rows of normally distributed bf16 or f32.
struct Inputs {
  std::vector<float> values;   // [rows][d]
  std::vector<uint16_t> bf16;  // the same numbers, if x is bf16
  MatrixView view;

  Inputs(const LinearMatrix& what, int64_t rows) {
    const auto count = static_cast<size_t>(rows * what.d);
    bf16.resize(2 * count);
    auto* bytes = reinterpret_cast<uint8_t*>(bf16.data());
    FillBF16(bytes, 2 * rows * what.d, 1.0f, 2);
    const bool single = what.x_dtype == DType::kF32;
    for (size_t i = 0; i < count; ++i) {
      const float more = single ? LoadFloat(bytes, DType::kBF16, count + i) * 0x1p-9f : 0.0f;
      values.push_back(LoadFloat(bytes, DType::kBF16, i) + more);
    }
    view = {single ? static_cast<const void*>(values.data()) : bf16.data(), what.x_dtype, rows,
            what.d, what.d};
  }
};

struct Answer {
  std::vector<float> values;
  std::vector<int32_t> indices;
};

// Checks row `row` of the answer; if `whole`, also that no other token is better than the last one.
void CheckRow(const Head& head, const float* x, int64_t row, const Answer& answer, bool whole) {
  const int64_t k = head.what.k;
  const float* values = answer.values.data() + row * k;
  const int32_t* indices = answer.indices.data() + row * k;
  std::vector<uint8_t> taken(static_cast<size_t>(head.what.vocab), 0);
  const auto bound = [&](double magnitude) { return 300 * 0x1p-24 * magnitude; };
  for (int64_t i = 0; i < k; ++i) {
    double magnitude = 0;
    const double exact = head.Logit(x, indices[i], &magnitude);
    taken[static_cast<size_t>(indices[i])] += 1;
    if (!(std::abs(values[i] - exact) <= bound(magnitude)) ||
        taken[static_cast<size_t>(indices[i])] > 1 || (i > 0 && values[i] > values[i - 1])) {
      throw std::runtime_error(fmt::format("{}: row {}, place {}: token {} has {}, but {} is right",
                                           head.what.name, row, i, indices[i], values[i], exact));
    }
  }
  for (int64_t token = 0; whole && token < head.what.vocab; ++token) {
    double magnitude = 0;
    const double exact = head.Logit(x, token, &magnitude);
    if (taken[static_cast<size_t>(token)] == 0 && exact - bound(magnitude) > values[k - 1]) {
      throw std::runtime_error(
          fmt::format("{}: row {} lacks token {} of {}", head.what.name, row, token, exact));
    }
  }
}

}  // namespace

double LinearMatrix::bytes() const {
  const auto elements = static_cast<double>(vocab) * static_cast<double>(d);
  return format == WeightFormat::kQ8_0 ? elements / kQ8Block * kQ8BlockBytes : 2 * elements;
}

std::string CaseName(const LinearMatrix& what, int64_t rows) {
  return fmt::format("{}-rows{}", what.name, rows);
}

std::vector<LinearMatrix> LinearMatrices(bool quick, const std::string& part) {
  const std::vector<LinearMatrix> all = {
      {.name = "bf16", .vocab = 201088, .d = 2880, .rows = {1, 8, 32, 256}},
      {.name = "q8",
       .vocab = 262144,
       .d = 640,
       .format = WeightFormat::kQ8_0,
       .rows = {1, 8, 32, 256}},
      {.name = "q8-f32",
       .vocab = 262144,
       .d = 640,
       .format = WeightFormat::kQ8_0,
       .x_dtype = DType::kF32,
       .rows = {1, 8, 32}}};
  std::vector<LinearMatrix> chosen;
  for (LinearMatrix what : all) {
    std::erase_if(what.rows, [&](int64_t rows) {
      return CaseName(what, rows).find(part) == std::string::npos;
    });
    if (!what.rows.empty() && !(quick && what.bytes() > kQuickBytes)) {
      chosen.push_back(what);
    }
  }
  return chosen;
}

void RunLinearCases(const LinearMatrix& what, double min_seconds, ThreadPool* pool,
                    const std::function<void(int64_t rows, const RooflineLine&)>& done) {
  const Head head(what);
  const int64_t max_rows = *std::max_element(what.rows.begin(), what.rows.end());
  const Inputs x(what, max_rows);
  bool first = true;
  for (const int64_t rows : what.rows) {
    Answer answer{std::vector<float>(static_cast<size_t>(rows * what.k)),
                  std::vector<int32_t>(static_cast<size_t>(rows * what.k))};
    MatrixView view = x.view;
    view.rows = rows;
    const auto call = [&] {
      LinearTopK(view, head.weight, what.k,
                 {answer.values.data(), what.k, answer.indices.data(), what.k}, {.pool = pool});
    };
    call();
    for (int64_t i = 0; i < std::min(rows, kCheckedRows); ++i) {
      const int64_t row = i * (rows - 1) / std::max<int64_t>(1, std::min(rows, kCheckedRows) - 1);
      CheckRow(head, x.values.data() + row * what.d, row, answer, first && i == 0);
    }
    first = false;
    RooflineCase roofline;
    roofline.name = CaseName(what, rows);
    roofline.pages = PagesOf(head.memory.data(), head.memory.bytes());
    roofline.bytes = what.bytes();
    roofline.operations =
        2.0 * static_cast<double>(rows * what.vocab) * static_cast<double>(what.d);
    roofline.call = call;
    roofline.read = [&] { ReadMax(head.memory.data(), head.memory.bytes(), {.pool = pool}); };
    done(rows, MeasureRoofline(roofline, min_seconds, pool));
  }
}

}  // namespace riffle::cli
