// Drawing the next token of each sequence from its logits: exact, seeded, and the same whatever
// else is in the batch.
#pragma once

#include <cstdint>
#include <span>

#include "riffle/export.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// What to do with a row that has a NaN or nothing above -inf.
enum class InvalidRow : uint8_t {
  kThrow,  // Error(kBadValue), and nothing is written
  kToken,  // token -1, log-probability NaN; the other rows are drawn as if it were not there
};

// Tokens of each row: row r has tokens[offsets[r], offsets[r + 1]). Without offsets no row has any.
struct TokenLists {
  std::span<const int32_t> tokens = {};   // each in 0 to n - 1
  std::span<const int64_t> offsets = {};  // [rows + 1], ascending, from 0 to the number of tokens
};

// A bit for each column: column c is bit c % 32 of word c / 32.
struct BitmaskView {
  const int32_t* words = nullptr;  // [rows, (n + 31) / 32]; null: every column is allowed
  int64_t row_stride = 0;          // words
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

  // What changes the logits x of a row before the temperature, in this order, each step in f32:
  //   allowed     -inf where the column's bit is clear
  //   bias        x + bias[i], for the column bias_tokens.tokens[i]
  //   repetition  x / r if x >= 0, else x * r, for each token of the prompt and of the output
  //   frequency   x - f * how often the token is in the output
  //   presence    x - p, for each token of the output
  // Sources: Keskar et al., "CTRL" (2019), section 4.1, for repetition, with negative logits as
  // Transformers treats them; OpenAI's API for frequency and presence; the order is vLLM's.
  BitmaskView allowed = {};
  TokenLists bias_tokens = {};
  std::span<const float> bias = {};                // of bias_tokens.tokens; finite, or -inf
  std::span<const float> repetition_penalty = {};  // default 1: off; finite, > 0
  std::span<const float> frequency_penalty = {};   // default 0: off; finite
  std::span<const float> presence_penalty = {};    // default 0: off; finite
  TokenLists prompt_tokens = {};
  TokenLists output_tokens = {};

  ThreadPool* pool = nullptr;  // null: DefaultPool()
};

// The best log-probabilities of each row.
struct TopLogProbs {
  int64_t k = 0;  // 0 to n; 0: none
  OutView<float> logprobs;
  OutView<int32_t> tokens;
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
//   logprobs  [rows] or empty: the log-softmax of the raw logits (no bias, penalty, temperature or
//             filter) at the token drawn, natural log
//   top       [rows, top.k]: the best columns of the raw logits, best first, and the log-softmax at
//             each. NaN and -1 for a row of logits that has a NaN or nothing above -inf
// Top-p is exact over all columns, though they are never sorted: a pass over the row sums what lies
// above a narrow window of values, and the prefix ends at one of the columns in the window.
//
// The weights 2^((x - max) * log2(e) / temperature) are computed in f32 (2 ulp) and summed in
// double, groups of up to eight first in f32 (three roundings), in an order fixed by the row alone.
// So results do not depend on the thread count, the batch or the layout; on one SIMD target they
// have the same bits. The random numbers are those of Philox4x32-10 (Salmon et al. 2011,
// Random123), 53 bits per draw.
//
// Logits of +inf are taken as a limit: if a row has some, they share the whole mass equally. Those
// of -inf have none. Throws Error: kBadValue for a row with a NaN or with nothing above -inf,
// naming the first such row, unless `on_invalid` says otherwise; kBadShape, kBadDType, kBadOption,
// kOverlap, kOutOfMemory. Nothing is written on error. Allocates nothing once scratch has grown to
// the shape.
RIFFLE_API void Sample(const MatrixView& logits, std::span<int32_t> tokens,
                       std::span<float> logprobs, const TopLogProbs& top,
                       const SampleOptions& options);

inline void Sample(const MatrixView& logits, std::span<int32_t> tokens, std::span<float> logprobs,
                   const SampleOptions& options = {}) {
  Sample(logits, tokens, logprobs, TopLogProbs(), options);
}

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
// from: of equal values at the end of top_k or top_p, the lower columns. Columns that no filter
// drops are kept even if Sample would never draw them because their weight underflows.
//   logits  [rows, n] f32, 1 <= n < 2^31; rows may be 0 and must not share bytes
// A row with a NaN or with nothing above -inf has no best columns and stays as it is, as does one
// without a filter. Throws Error: kBadShape, kBadOption, kOverlap, kOutOfMemory; nothing is written
// then. Allocates nothing once scratch has grown to the shape.
RIFFLE_API void ApplyTopKTopP(const OutView<float>& logits, int64_t rows, int64_t n,
                              const FilterOptions& options = {});

// Drafts of several requests, to be verified: request r has the drafts tokens[offsets[r],
// offsets[r + 1]), one position after another; it may have none.
struct DraftLists {
  std::span<const int32_t> tokens = {};   // [drafts], each in 0 to n - 1
  std::span<const int64_t> offsets = {};  // [requests + 1], ascending, from 0 to drafts
  // [drafts, n] f32: the distribution that each draft was drawn from. Without data each was chosen
  // for certain, as a greedy draft is.
  MatrixView probabilities = {};
};

// Verifies drafts by exact rejection sampling: what is written follows the distribution that the
// filters leave of the target's logits, whatever the drafts are.
//   logits  [drafts + requests, n] f32|f16|bf16: for each request a row per draft position, then
//           one for the position after them
//   tokens  [requests, width]: the accepted drafts, then one more token, then -1. width is at least
//           1 + the largest number of drafts of any request
// With probabilities q a draft d is accepted with min(1, p(d) / q(d)); the token after the last one
// accepted is drawn from the positive part of p - q, renormalised, or after all drafts from p
// (Leviathan et al. 2023; Chen et al. 2023). Without probabilities each position is drawn as Sample
// draws it, and its draft is accepted if it is the token drawn: the same distribution, and the very
// tokens that Sample would have drawn one by one.
//
// Lists of the options have one element per request, or one for all, or none. The default stream is
// the request's number, and `position` that of its first draft. Biases and penalties must be empty.
// A row without an answer ends its request with InvalidRow::kToken. Throws Error as Sample does.
RIFFLE_API void VerifyDrafts(const MatrixView& logits, const DraftLists& drafts,
                             const OutView<int32_t>& tokens, int64_t width,
                             const SampleOptions& options = {});

}  // namespace riffle
