// The entry point of sampling: it checks the arguments, then runs the call.
#include "riffle/sampling.h"

#include "core/entry_point.h"
#include "core/targets.h"
#include "sampling/sampling_batch.h"
#include "sampling/sampling_check.h"
#include "sampling/sampling_run.h"

namespace riffle {

void Sample(const MatrixView& logits, std::span<int32_t> tokens, std::span<float> logprobs,
            const SampleOptions& options) try {
  const core::EntryPoint entry;
  sampling::CheckSample(logits, options, tokens, logprobs);
  core::EnsureTarget();
  if (logits.rows > 0) {
    sampling::RunSample(sampling::SamplingBatch(logits, options), tokens, logprobs);
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
