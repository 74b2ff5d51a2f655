// The checks of attention's entry points.
#pragma once

#include <span>

#include "riffle/attention.h"

namespace riffle::attention {

// All throw Error; nothing is written, and of the caller's arrays only those of lengths, flags,
// sinks and slopes are read. Page numbers are checked while they are copied (attention_batch.h).

// The shapes of q and keys, which a plan depends on, and the options.
void CheckShapes(const HeadsView& q, const PagedKv& keys, const AttentionOptions& options);
// The rest of what a call reads and writes; after CheckShapes. `batch` null: a plan's own copy.
void CheckData(const HeadsView& q, const PagedKv& keys, const PagedKv& values,
               const PagedBatch* batch, const AttentionOut& out, const AttentionOptions& options);
// The lengths of a batch against each other, and where its page table lies.
void CheckBatch(const PagedBatch& batch, const PagedKv& keys, int64_t tokens,
                const AttentionOptions& options);
void CheckLengths(const PagedBatch& batch, const PagedKv& keys, int64_t tokens,
                  const AttentionOptions& options);
// The pool alone.
void CheckPool(const PagedKv& keys, const PagedKv& values);
void CheckMerge(std::span<const AttentionPart> parts, const AttentionOut& out);

}  // namespace riffle::attention
