// Runs a checked call that verifies drafts.
#pragma once

#include <cstdint>

#include "riffle/sampling.h"

namespace riffle::sampling {

// Throws Error before anything is written.
void CheckDrafts(const MatrixView& logits, const DraftLists& drafts, const OutView<int32_t>& tokens,
                 int64_t width, const SampleOptions& options);

// Pre: there is a request.
void RunVerify(const MatrixView& logits, const DraftLists& drafts, const OutView<int32_t>& tokens,
               int64_t width, const SampleOptions& options);

}  // namespace riffle::sampling
