#include "cli/distributions.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "testing/rng.h"

namespace riffle::cli {
namespace {

constexpr int64_t kFreshRows = 64;
constexpr int64_t kRotation = 4099;  // how many columns a repeated row is rotated by

}  // namespace

const char* NameOf(Distribution distribution) {
  return std::ranges::find(kTimedDistributions, distribution, &TimedDistribution::distribution)
      ->name;
}

void Fill(Distribution distribution, DType dtype, int64_t rows, int64_t cols, int64_t k,
          void* data) {
  test::Rng rng(20240229);
  const size_t row_bytes = static_cast<size_t>(cols) * SizeOf(dtype);
  auto* bytes = static_cast<uint8_t*>(data);
  for (int64_t r = 0; r < std::min(rows, kFreshRows); ++r) {
    test::FillRow(distribution, dtype, cols, k, rng, bytes + static_cast<size_t>(r) * row_bytes);
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
