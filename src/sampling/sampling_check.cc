#include "sampling/sampling_check.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "core/check.h"
#include "core/overlap.h"
#include "sampling/adjust.h"

namespace riffle::sampling {
namespace {

constexpr int64_t kMaxColumns = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxRows = kMaxColumns;

void CheckLogits(const MatrixView& x) {
  core::Check(x.rows >= 0 && x.rows <= kMaxRows, Code::kBadShape, "logits has ", x.rows,
              " rows; 0 to ", kMaxRows, " are possible");
  core::Check(x.cols >= 1 && x.cols <= kMaxColumns, Code::kBadShape, "logits has ", x.cols,
              " columns; 1 to ", kMaxColumns, " are possible");
  core::Check(x.dtype <= DType::kBF16, Code::kBadDType, "logits has the unknown dtype ",
              static_cast<int>(x.dtype));
  core::Check(x.data != nullptr || x.rows == 0, Code::kBadShape, "logits.data is null");
  int64_t extent = 0;
  core::Check(!__builtin_mul_overflow(x.row_stride, std::max<int64_t>(x.rows, 1), &extent) &&
                  !__builtin_mul_overflow(extent, int64_t{4}, &extent) &&
                  extent != std::numeric_limits<int64_t>::min(),
              Code::kBadShape, "the row stride ", x.row_stride, " of logits times its ", x.rows,
              " rows does not fit an address");
}

// Checks that a list has one element per row, one for all rows, or none.
template <typename T>
void CheckList(const char* name, std::span<const T> list, int64_t rows) {
  const auto size = static_cast<int64_t>(list.size());
  core::Check(size <= 1 || size == rows, Code::kBadShape, name, " has ", size, " elements for ",
              rows, " rows; give one for all rows, or one per row");
}

template <typename T>
void CheckIn(const char* name, std::span<const T> list, int64_t rows, T low, T high,
             const char* limits) {
  CheckList(name, list, rows);
  for (size_t i = 0; i < list.size(); ++i) {
    core::Check(list[i] >= low && list[i] <= high, Code::kBadOption, name, "[", i, "] = ", list[i],
                " is not ", limits);
  }
}

void CheckFilterLists(const SampleOptions& options, int64_t rows) {
  CheckIn("top_k", options.top_k, rows, 0, std::numeric_limits<int32_t>::max(),
          "at least 0 (0: off)");
  CheckIn("top_p", options.top_p, rows, 0.0f, 1.0f, "in 0..1");
  CheckIn("min_p", options.min_p, rows, 0.0f, 1.0f, "in 0..1");
}

template <typename T>
core::ByteRows Bytes(std::span<const T> list) {
  return {list.data(), list.empty() ? 0 : 1, 0, static_cast<int64_t>(list.size_bytes())};
}

void CheckRowLists(const SampleOptions& options, int64_t rows) {
  CheckIn("temperature", options.temperature, rows, 0.0f, std::numeric_limits<float>::max(),
          "finite and at least 0");
  CheckFilterLists(options, rows);
  CheckList("seeds", options.seeds, rows);
  CheckList("stream", options.stream, rows);
  CheckList("position", options.position, rows);
}

struct Named {
  const char* name;
  core::ByteRows rows;
};

core::ByteRows Bytes(const MatrixView& x) {
  const auto element = static_cast<int64_t>(SizeOf(x.dtype));
  return {x.data, x.rows, x.row_stride * element, x.cols * element};
}

core::ByteRows Bytes(const BitmaskView& mask, const MatrixView& logits) {
  return {mask.words, mask.words == nullptr ? 0 : logits.rows, mask.row_stride * 4,
          (logits.cols + 31) / 32 * 4};
}

template <typename T>
core::ByteRows Bytes(const OutView<T>& out, int64_t rows, int64_t cols) {
  return {out.data, cols == 0 ? 0 : rows, out.row_stride * 4, cols * 4};
}

void CheckOutput(const Named& out, std::span<const Named> inputs) {
  for (const Named& in : inputs) {
    core::Check(!core::Overlaps(out.rows, in.rows), Code::kOverlap, out.name,
                " shares memory with ", in.name, ", which is only read");
  }
}

void CheckOverlaps(const MatrixView& logits, const SampleOptions& options,
                   std::span<const int32_t> tokens, std::span<const float> logprobs,
                   const TopLogProbs& top) {
  const Named inputs[] = {{"logits", Bytes(logits)},
                          {"temperature", Bytes(options.temperature)},
                          {"top_k", Bytes(options.top_k)},
                          {"top_p", Bytes(options.top_p)},
                          {"min_p", Bytes(options.min_p)},
                          {"seeds", Bytes(options.seeds)},
                          {"stream", Bytes(options.stream)},
                          {"position", Bytes(options.position)},
                          {"allowed", Bytes(options.allowed, logits)},
                          {"logit_bias", Bytes(options.bias_tokens.tokens)},
                          {"logit_bias", Bytes(options.bias_tokens.offsets)},
                          {"logit_bias", Bytes(options.bias)},
                          {"repetition_penalty", Bytes(options.repetition_penalty)},
                          {"frequency_penalty", Bytes(options.frequency_penalty)},
                          {"presence_penalty", Bytes(options.presence_penalty)},
                          {"prompt_tokens", Bytes(options.prompt_tokens.tokens)},
                          {"prompt_tokens", Bytes(options.prompt_tokens.offsets)},
                          {"output_tokens", Bytes(options.output_tokens.tokens)},
                          {"output_tokens", Bytes(options.output_tokens.offsets)}};
  const Named outputs[] = {{"tokens", Bytes(tokens)},
                           {"logprobs", Bytes(logprobs)},
                           {"top.logprobs", Bytes(top.logprobs, logits.rows, top.k)},
                           {"top.tokens", Bytes(top.tokens, logits.rows, top.k)}};
  for (size_t i = 0; i < std::size(outputs); ++i) {
    CheckOutput(outputs[i], inputs);
    core::Check(!core::OverlapsItself(outputs[i].rows), Code::kOverlap, "the rows of ",
                outputs[i].name, " share memory");
    for (size_t j = 0; j < i; ++j) {
      core::Check(!core::Overlaps(outputs[i].rows, outputs[j].rows), Code::kOverlap,
                  outputs[i].name, " shares memory with ", outputs[j].name);
    }
  }
}

}  // namespace

void CheckSample(const MatrixView& logits, const SampleOptions& options,
                 std::span<const int32_t> tokens, std::span<const float> logprobs,
                 const TopLogProbs& top) {
  CheckLogits(logits);
  core::Check(top.k >= 0 && top.k <= logits.cols, Code::kBadOption, "top_logprobs = ", top.k,
              " is not in 0..", logits.cols, ", the number of columns");
  const int64_t rows = logits.rows;
  const auto count = static_cast<int64_t>(tokens.size());
  const auto probs = static_cast<int64_t>(logprobs.size());
  core::Check(count == rows, Code::kBadShape, "tokens has ", count, " elements for ", rows,
              " rows");
  core::Check(probs == 0 || probs == rows, Code::kBadShape, "logprobs has ", probs,
              " elements for ", rows, " rows");
  CheckRowLists(options, rows);
  CheckAdjustments(logits, options);
  CheckOverlaps(logits, options, tokens, logprobs, top);
}

void CheckVerify(const MatrixView& logits, const SampleOptions& options, int64_t requests) {
  CheckLogits(logits);
  CheckRowLists(options, requests);
}

void CheckOutputOfDrafts(const core::ByteRows& tokens, const MatrixView& logits,
                         const DraftLists& drafts, const SampleOptions& options) {
  const MatrixView& q = drafts.probabilities;
  const Named inputs[] = {{"logits", Bytes(logits)},
                          {"draft_tokens", Bytes(drafts.tokens)},
                          {"the drafts' offsets", Bytes(drafts.offsets)},
                          {"draft_probs", q.data == nullptr ? core::ByteRows{} : Bytes(q)},
                          {"temperature", Bytes(options.temperature)},
                          {"top_k", Bytes(options.top_k)},
                          {"top_p", Bytes(options.top_p)},
                          {"min_p", Bytes(options.min_p)},
                          {"seeds", Bytes(options.seeds)},
                          {"stream", Bytes(options.stream)},
                          {"position", Bytes(options.position)}};
  CheckOutput({"tokens", tokens}, inputs);
}

void CheckFilters(const MatrixView& logits, const SampleOptions& options) {
  CheckLogits(logits);
  CheckFilterLists(options, logits.rows);
  core::Check(!core::OverlapsItself(Bytes(logits)), Code::kOverlap, "the rows of logits, ",
              logits.cols, " columns at a stride of ", logits.row_stride, ", share memory");
  const Named inputs[] = {{"top_k", Bytes(options.top_k)},
                          {"top_p", Bytes(options.top_p)},
                          {"min_p", Bytes(options.min_p)}};
  CheckOutput({"logits", Bytes(logits)}, inputs);
}

}  // namespace riffle::sampling
