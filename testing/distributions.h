// Named inputs: what real logits look like, and what breaks selection algorithms.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/types.h"
#include "testing/rng.h"

namespace riffle::test {

enum class Distribution : uint8_t {
  kNormal,
  kUniform,      // in [0, 1): no value is negative
  kLogProbs,     // log-probabilities: all negative
  kFewPositive,  // fewer positive values than k, so the k-th is negative
  kTies,         // 64 distinct values
  kAscending,    // the best last: every element is larger than all before it, as far as the dtype
                 // tells
  kDescending,
  kOrganPipe,  // ascending, then descending
  kAllEqual,
  kHotBucket,       // the k best are neighbours
  kHotLane,         // the k best are 128 columns apart, as far as the row reaches
  kMostlyMinusInf,  // a masked vocabulary
  kAllMinusInf,
  kNaNSprinkled,  // one element in eight is a NaN, of either sign and several payloads
  kFewNaN,  // one to three negative NaNs, whose bits as integers look like the smallest values
  kAllNaN,
  kInfinities,   // +inf and -inf among finite values
  kDenormals,    // of both signs, with zeros: a kernel that flushes denormals finds them all equal
  kSignedZeros,  // about k / 2 positive values, then zeros of both signs around the k-th place
  kRandomBits,
};
inline constexpr int kDistributions = static_cast<int>(Distribution::kRandomBits) + 1;

const char* Name(Distribution distribution);
std::vector<Distribution> AllDistributions();

std::vector<DType> AllDTypes();

// Writes row[0, n), at any alignment. For an integer dtype the values are scaled to its range: -inf
// becomes the lowest, +inf and NaN the highest. `k` is the k that the caller is going to ask for.
void FillRow(Distribution distribution, DType dtype, int64_t n, int64_t k, Rng& rng, uint8_t* row);

// The bits of `value` rounded towards zero to f32, f16 or bf16; 16-bit types use the low half.
uint32_t Encode(DType dtype, float value);

// The bits of special elements of f32, f16 and bf16.
uint32_t PlusInf(DType dtype);
uint32_t MinusInf(DType dtype);
uint32_t SignBit(DType dtype);

// The bits of a NaN. `which`, 0 to 7, selects its payload and sign, quiet or signalling.
uint32_t NaN(DType dtype, int64_t which);

// Stores the low SizeOf(dtype) bytes of `bits` at any alignment.
void Store(DType dtype, uint64_t bits, uint8_t* element);

}  // namespace riffle::test
