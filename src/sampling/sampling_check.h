// The argument checks of the sampling entry point.
#pragma once

#include <cstdint>
#include <span>

#include "core/overlap.h"
#include "riffle/sampling.h"

namespace riffle::sampling {

// Throws Error before anything is written. Of the caller's arrays it reads only the options.
void CheckSample(const MatrixView& logits, const SampleOptions& options,
                 std::span<const int32_t> tokens, std::span<const float> logprobs,
                 const TopLogProbs& top);

// The options of a call that verifies drafts of `requests` requests, and its logits.
void CheckVerify(const MatrixView& logits, const SampleOptions& options, int64_t requests);
void CheckOutputOfDrafts(const core::ByteRows& tokens, const MatrixView& logits,
                         const DraftLists& drafts, const SampleOptions& options);

// The same for a call that filters `logits` in place.
void CheckFilters(const MatrixView& logits, const SampleOptions& options);

}  // namespace riffle::sampling
