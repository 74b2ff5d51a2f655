// The entry point of sampling: it checks the arguments, then runs the call.
#include "riffle/sampling.h"

#include <optional>

#include "core/entry_point.h"
#include "core/targets.h"
#include "sampling/adjust.h"
#include "sampling/logprobs.h"
#include "sampling/sampling_batch.h"
#include "sampling/sampling_check.h"
#include "sampling/sampling_run.h"
#include "sampling/verify_drafts.h"

namespace riffle {

void Sample(const MatrixView& logits, std::span<int32_t> tokens, std::span<float> logprobs,
            const TopLogProbs& top, const SampleOptions& options) try {
  const core::EntryPoint entry;
  sampling::CheckSample(logits, options, tokens, logprobs, top);
  core::EnsureTarget();
  if (logits.rows == 0) {
    return;
  }
  const bool adjusts = sampling::Adjusts(options);
  if (!adjusts && top.k == 0) {
    sampling::RunSample(sampling::SamplingBatch(logits, options), tokens, logprobs);
    return;
  }
  const bool any_raw = !logprobs.empty() || top.k > 0;
  const size_t raw_bytes = any_raw ? sampling::RawLogProbs::Bytes(logits, top.k) : 0;
  const size_t bytes = raw_bytes + (adjusts ? sampling::AdjustedBytes(logits) : 0);
  const MatrixView planned{nullptr, adjusts ? DType::kF32 : logits.dtype, logits.rows, logits.cols,
                           logits.cols};
  uint8_t* const memory = sampling::ReserveBefore(sampling::SamplingBatch(planned, options), bytes);
  std::optional<sampling::RawLogProbs> raw;
  if (any_raw) {
    raw.emplace(logits, top.k, options.pool, memory);
  }
  const MatrixView sampled =
      adjusts ? sampling::Adjust(logits, options, memory + raw_bytes) : logits;
  sampling::RunSample(sampling::SamplingBatch(sampled, options), tokens, {}, bytes);
  if (raw.has_value()) {
    raw->Write(tokens, logprobs, top);
  }
} catch (...) {
  core::RethrowAsError();
}

void VerifyDrafts(const MatrixView& logits, const DraftLists& drafts,
                  const OutView<int32_t>& tokens, int64_t width, const SampleOptions& options) try {
  const core::EntryPoint entry;
  sampling::CheckDrafts(logits, drafts, tokens, width, options);
  core::EnsureTarget();
  if (logits.rows > 0) {
    sampling::RunVerify(logits, drafts, tokens, width, options);
  }
} catch (...) {
  core::RethrowAsError();
}

void ApplyTopKTopP(const OutView<float>& logits, int64_t rows, int64_t n,
                   const FilterOptions& options) try {
  const core::EntryPoint entry;
  const MatrixView matrix{logits.data, DType::kF32, rows, n, logits.row_stride};
  const SampleOptions filters{
      .top_k = options.top_k, .top_p = options.top_p, .min_p = options.min_p, .pool = options.pool};
  sampling::CheckFilters(matrix, filters);
  core::EnsureTarget();
  if (rows > 0) {
    sampling::RunFilters(sampling::SamplingBatch(matrix, filters, /*call_draws=*/false),
                         logits.data);
  }
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
