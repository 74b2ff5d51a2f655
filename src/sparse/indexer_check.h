// The checks of the indexer's entry points. All throw Error; nothing is written.
#pragma once

#include <span>

#include "core/strided.h"
#include "riffle/indexer.h"

namespace riffle::sparse {

// An input or output and what it is called.
struct NamedBytes {
  const char* name;
  core::Strided bytes;
};

void CheckIn(const char* name, int64_t value, int64_t low, int64_t high);
void CheckSame(const char* what, int64_t a, const char* other, int64_t b);

// Throws where an output overlaps itself or an input, or does not fit an address.
void CheckOutput(const NamedBytes& out, std::span<const NamedBytes> inputs);

core::Strided HeadsBytes(const HeadsView& x);
core::Strided RowsBytes(const void* data, int64_t rows, int64_t stride, int64_t cols,
                        int64_t element);
core::Strided SpanBytes(const IndexSpan& x);
core::Strided TableBytes(const PagedBatch& batch);
core::Strided KeyBytes(const IndexKeys& keys);
core::Strided ScaleBytes(const IndexKeys& keys);

// Shapes, dtypes and where everything lies.
void CheckIndexer(const HeadsView& q, const IndexWeights& weights, const IndexKeys& keys);
void CheckKeys(const IndexKeys& keys);

// The lengths of a batch against each other; `tokens` are those of q.
void CheckIndexBatch(const PagedBatch& batch, const IndexKeys& keys, int64_t tokens, int64_t ratio);
void CheckRanges(std::span<const int32_t> starts, std::span<const int32_t> ends,
                 const IndexKeys& keys, int64_t tokens);

void CheckSelect(const IndexTopKOptions& options, int64_t k, int64_t tokens);

}  // namespace riffle::sparse
