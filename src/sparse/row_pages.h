// Rows that queries name, as attention's kernels read them.
#pragma once

#include <cstdint>
#include <span>

#include "attention/attention_args.h"
#include "riffle/sparse_attention.h"

namespace riffle::sparse {

// Whether plain rows are of 8-bit elements or of blocks, which kernels decode.
constexpr bool IsCoded(const SparseRows& rows) {
  return rows.format == SparseRowFormat::kPlain && rows.dtype > DType::kBF16;
}

// Bytes of the first `dim` elements of plain rows.
constexpr int64_t PlainRowBytes(const SparseRows& rows, int64_t dim) {
  return rows.blocks == KvFormat::kPlain ? dim * static_cast<int64_t>(SizeOf(rows.dtype))
                                         : dim / 32 * BlockBytes(rows.blocks);
}

// How a call reads its rows. Rows that can be read in several ways give the same bits in each.
enum class RowAccess : uint8_t {
  kInPlace,  // one pool, whose slots are pages of one row
  kCopied,   // coded rows of one format, of several pools: copied with their scales, one after
             // another
  kDecoded,  // to f32 or bf16, one after another
};
RowAccess ChooseRowAccess(std::span<const SparseScope> scopes);

// The first `dim` elements of the rows of a pool as pages of one row each, number = slot.
// Pre: plain rows that ChooseRowAccess reads in place.
attention::KvPages PagesInPlace(const SparseRows& rows, int dim);

// The same for rows that are copied, or decoded to `dtype`, as one page. PlaceRows sets their
// addresses; a row's copy takes token_stride bytes, its scales scales.token_stride.
attention::KvPages PagesOfCopies(const SparseRows& rows, int dim);
attention::KvPages PagesOfDecoded(DType dtype, int64_t row_dim, int dim);
void PlaceRows(const uint8_t* rows, const uint8_t* scales, attention::KvPages* pages);

// Bytes of the scales of a row's copy; 0 if they are in the row, or if one scale serves all rows.
int64_t CopiedScaleBytes(const attention::KvPages& pages);

// Rows [begin, end) of those that a query names (GatherKernels::gather), with their scales.
//   pages  PagesOfCopies of the whole row
void CopyRows(std::span<const SparseScope> scopes, const int32_t* slots, const int32_t* counts,
              int64_t begin, int64_t end, const attention::KvPages& pages, uint8_t* rows,
              uint8_t* scales);

// Where row `slot` is, and its scales (null if it has none of its own).
struct RowAddress {
  const uint8_t* row;
  const uint8_t* scales;
};
RowAddress AddressOf(const SparseRows& rows, int32_t slot);

// The eight bytes of scales of row `slot` of a kMla584 pool, which lie after all rows of its page.
const uint8_t* Mla584Scales(const SparseRows& rows, int32_t slot);

}  // namespace riffle::sparse
