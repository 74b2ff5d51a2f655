// Drawing the next token of each sequence from its logits: exact, seeded, and the same whatever
// else is in the batch.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/export.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// What becomes of a row that has a NaN or nothing above -inf.
enum class InvalidRow : uint8_t {
  kThrow,  // Error(kBadValue), and nothing is written
  kToken,  // token -1, log-probability NaN; the other rows are drawn as if it were not there
};

// Each list has one element per row, or one for all rows, or none, which means the default.
struct SampleOptions {
  std::span<const float> temperature = {};  // default 1; 0: greedy; finite, >= 0
  std::span<const int32_t> top_k = {};  // default 0: off, as is any k above the number of columns
  std::span<const float> top_p = {};    // default 1: off; 0 to 1
  std::span<const float> min_p = {};    // default 0: off; 0 to 1
  uint64_t seed = 0;
  std::span<const uint64_t> seeds = {};  // default: `seed`, which a list replaces
  // A draw is numbered by (seed, stream, position): two rows with the same three numbers and the
  // same logits draw the same token.
  std::span<const int64_t> stream = {};    // default: the row's number. Request ids make a
                                           // request's tokens independent of its batch
  std::span<const int64_t> position = {};  // default 0; the position of the token in its sequence
  InvalidRow on_invalid = InvalidRow::kThrow;
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// tokens[r] = a column of logits[r], drawn with the probabilities that are left after these steps:
//   temperature  softmax(logits / temperature); 0 takes the best column (of equal ones the lower)
//                and ignores the filters
//   top_k        keeps the k best columns, in Riffle's order (equal values: the lower column first)
//   top_p        of these, renormalised, keeps the smallest prefix in that order whose mass reaches
//                top_p, including the column that crosses it; at least one column
//   min_p        of these, keeps the columns at least min_p times as probable as the best one
//   then renormalises and draws
//   logits    [rows, n]  f32|f16|bf16, 1 <= n < 2^31; rows may be 0
//   tokens    [rows]
//   logprobs  [rows] or empty: the log-softmax of the raw logits (no temperature, no filter) at the
//             token drawn, natural log
// Top-p is exact over all columns, though they are never sorted: more and more of the best columns
// are selected, until their mass proves that they contain the prefix.
//
// The weights 2^((x - max) * log2(e) / temperature) are computed in f32 (2 ulp) and summed in
// double, in an order fixed by the columns alone. So results do not depend on the thread count, the
// batch or the layout; on one SIMD target they have the same bits. The random numbers are those of
// Philox4x32-10 (Salmon et al. 2011, Random123), 53 bits per draw.
//
// Logits of +inf are taken as a limit: if a row has some, they share the whole mass equally. Those
// of -inf have none. Throws Error: kBadValue for a row with a NaN or with nothing above -inf,
// naming the first such row, unless `on_invalid` says otherwise; kBadShape, kBadDType, kBadOption,
// kOverlap, kOutOfMemory. Nothing is written on error. Allocates nothing once scratch has grown to
// the shape.
RIFFLE_API void Sample(const MatrixView& logits, std::span<int32_t> tokens,
                       std::span<float> logprobs, const SampleOptions& options = {});

// Without log-probabilities, which take a pass over the logits.
inline void Sample(const MatrixView& logits, std::span<int32_t> tokens,
                   const SampleOptions& options = {}) {
  Sample(logits, tokens, std::span<float>(), options);
}

// Each list has one element per row, or one for all rows, or none, which means off.
struct FilterOptions {
  std::span<const int32_t> top_k = {};
  std::span<const float> top_p = {};
  std::span<const float> min_p = {};
  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// Filters logits in place: a column outside of what the filters keep becomes -inf, the others keep
// their bits. What is kept is what Sample, with the same filters and a temperature of 1, draws
// from: of equal values at the end of top_k or top_p, the lower columns. Kept are also columns that
// no filter drops and that Sample never draws because their weight underflows.
//   logits  [rows, n] f32, 1 <= n < 2^31; rows may be 0 and must not share bytes
// A row with a NaN or with nothing above -inf has no best columns and stays as it is, as does one
// without a filter. Throws Error: kBadShape, kBadOption, kOverlap, kOutOfMemory; nothing is written
// then. Allocates nothing once scratch has grown to the shape.
RIFFLE_API void ApplyTopKTopP(const OutView<float>& logits, int64_t rows, int64_t n,
                              const FilterOptions& options = {});

}  // namespace riffle
