// Named inputs: the shapes of real logits, and the ones that break selection algorithms.
#pragma once

#include <cstdint>
#include <vector>

#include "riffle/types.h"
#include "testing/rng.h"

namespace riffle::test {

enum class Distribution : uint8_t {
  kNormal,
  kUniform,      // [0, 1): no negative value at all
  kLogProbs,     // all negative
  kFewPositive,  // fewer positive values than k, so the k-th is negative
  kTies,         // 64 distinct values
  kAscending,    // the best last: every element beats all before it
  kDescending,
  kOrganPipe,  // ascending, then descending
  kAllEqual,
  kHotBucket,       // the k best lie side by side
  kHotLane,         // the k best lie 128 columns apart, as far as the row reaches
  kMostlyMinusInf,  // a masked vocabulary
  kAllMinusInf,
  kNaNSprinkled,  // one in eight, of both signs and several payloads
  kFewNaN,        // one to three, negative: as integers they look like the smallest values
  kAllNaN,
  kInfinities,   // +inf and -inf among finite values
  kDenormals,    // of both signs, with zeros: equal only to a kernel that flushes them
  kSignedZeros,  // about k / 2 positive values, then zeros of both signs around the k-th place
  kRandomBits,
};
inline constexpr int kDistributions = static_cast<int>(Distribution::kRandomBits) + 1;

const char* Name(Distribution distribution);
std::vector<Distribution> AllDistributions();

std::vector<DType> AllDTypes();

// Writes row[0, n), of any alignment. Integers are the values scaled to their range: -inf is the
// lowest, +inf and NaN the highest. `k` is the k that the caller is going to ask for.
void FillRow(Distribution distribution, DType dtype, int64_t n, int64_t k, Rng& rng, uint8_t* row);

// The nearest element not further from zero than `value` (its bits, in the low half for 16 bits).
uint32_t Encode(DType dtype, float value);

// Bits of the special elements of f32, f16 and bf16; Encode is for those too.
uint32_t PlusInf(DType dtype);
uint32_t MinusInf(DType dtype);
uint32_t SignBit(DType dtype);

// A NaN: quiet or signalling, of either sign; `which` counts through the kinds.
uint32_t NaN(DType dtype, int64_t which);

// Stores the low SizeOf(dtype) bytes of `bits` at any alignment.
void Store(DType dtype, uint64_t bits, uint8_t* element);

}  // namespace riffle::test
