// The checks of the attention doors.
#pragma once

#include <span>

#include "riffle/attention.h"

namespace riffle::attention {

// Throw Error; nothing is written, and of the caller's arrays only lengths, page numbers and sinks
// are read.
void CheckAttention(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
                    const PagedBatch& batch, const AttentionOut& out,
                    const AttentionOptions& options);
void CheckMerge(std::span<const AttentionPart> parts, const AttentionOut& out);
// The pool and the page table alone.
void CheckPages(const PagedKv& keys, const PagedKv& values, const PagedBatch& batch);

}  // namespace riffle::attention
