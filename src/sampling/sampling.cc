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

}  // namespace riffle
