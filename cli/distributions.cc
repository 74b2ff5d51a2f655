#include "cli/distributions.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "cli/numbers.h"

namespace riffle::cli {
namespace {

constexpr int64_t kFreshRows = 64;
constexpr int64_t kRotation = 4099;  // columns from a repeated row to its next copy

using Row = std::vector<float>;

void MakeOrganPipe(Row& row) {
  std::sort(row.begin(), row.end());
  Row pipe(row.size());
  for (size_t i = 0; i < row.size(); ++i) {  // ranks go to both ends in turn
    pipe[i % 2 == 0 ? i / 2 : row.size() - 1 - i / 2] = row[i];
  }
  row = pipe;
}

// Lifts 64 elements, `step` columns apart, above all others.
void Lift(Row& row, size_t first, size_t step) {
  for (size_t i = 0; i < 64 && first + i * step < row.size(); ++i) {
    row[first + i * step] += 16;
  }
}

void MakeMostlyMinusInf(Row& row, size_t finite) {
  const size_t step = std::max<size_t>(row.size() / finite, 1);
  for (size_t i = 0; i < row.size(); ++i) {
    if (i % step != step / 2) {
      row[i] = -std::numeric_limits<float>::infinity();
    }
  }
}

void MakeLogProbs(Row& row) {
  double sum = 0;
  for (const float value : row) {
    sum += std::exp(static_cast<double>(value));
  }
  const auto log_sum = static_cast<float>(std::log(sum));
  for (float& value : row) {
    value -= log_sum;
  }
}

void Shape(Distribution distribution, int64_t r, Row& row) {
  const size_t middle = row.size() / 2;
  switch (distribution) {
    case Distribution::kNormal:
      break;
    case Distribution::kAscending:
      std::sort(row.begin(), row.end());
      break;
    case Distribution::kDescending:
      std::sort(row.begin(), row.end(), std::greater<>());
      break;
    case Distribution::kAllEqual:
      std::fill(row.begin(), row.end(), 0.5f);
      break;
    case Distribution::kOrganPipe:
      MakeOrganPipe(row);
      break;
    case Distribution::kHotBucket:
      Lift(row, middle / 64 * 64, 1);
      break;
    case Distribution::kHotLane:
      Lift(row, 5, 128);
      break;
    case Distribution::kFewValues:
      for (float& value : row) {
        value = std::floor(std::clamp(value, -3.2f, 3.1f) * 10) / 10;
      }
      break;
    case Distribution::kMostlyMinusInf:
      MakeMostlyMinusInf(row, r % 2 == 0 ? 200 : 20);
      break;
    case Distribution::kLogProbs:
      MakeLogProbs(row);
      break;
  }
}

}  // namespace

const char* Name(Distribution distribution) {
  switch (distribution) {
    case Distribution::kNormal:
      return "normal";
    case Distribution::kAscending:
      return "ascending";
    case Distribution::kDescending:
      return "descending";
    case Distribution::kAllEqual:
      return "all-equal";
    case Distribution::kOrganPipe:
      return "organ-pipe";
    case Distribution::kHotBucket:
      return "hot-bucket";
    case Distribution::kHotLane:
      return "hot-lane";
    case Distribution::kFewValues:
      return "64-values";
    case Distribution::kMostlyMinusInf:
      return "mostly-minus-inf";
    case Distribution::kLogProbs:
      return "log-probs";
  }
  return "?";
}

void Fill(Distribution distribution, DType dtype, int64_t rows, int64_t cols, void* data) {
  std::mt19937_64 random(20240229);
  std::normal_distribution<float> normal;
  const size_t row_bytes = static_cast<size_t>(cols) * SizeOf(dtype);
  auto* bytes = static_cast<uint8_t*>(data);
  Row row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < std::min(rows, kFreshRows); ++r) {
    std::generate(row.begin(), row.end(), [&] { return normal(random); });
    Shape(distribution, r, row);
    for (int64_t c = 0; c < cols; ++c) {
      StoreFloat(row[static_cast<size_t>(c)], data, dtype, r * cols + c);
    }
  }
  for (int64_t r = kFreshRows; r < rows; ++r) {
    const uint8_t* source = bytes + static_cast<size_t>(r % kFreshRows) * row_bytes;
    uint8_t* target = bytes + static_cast<size_t>(r) * row_bytes;
    const size_t split = static_cast<size_t>(r / kFreshRows * kRotation % cols) * SizeOf(dtype);
    std::memcpy(target, source + split, row_bytes - split);
    std::memcpy(target + row_bytes - split, source, split);
  }
}

}  // namespace riffle::cli
