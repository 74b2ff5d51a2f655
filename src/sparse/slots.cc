// PositionsToSlots and ExpandBlocks.
#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/entry_point.h"
#include "riffle/indexer.h"
#include "sparse/indexer_check.h"

namespace riffle {
namespace {

constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

void CheckPositions(const PositionsView& positions, const PageTableView& table,
                    const IndexSpan& cu_q_lens, const OutView<int32_t>& slots) {
  sparse::CheckIn("positions.tokens", positions.tokens, 0, kMaxInt);
  sparse::CheckIn("positions.cols", positions.cols, 0, kMaxInt);
  sparse::CheckIn("page_size", table.page_size, 1, kMaxInt);
  sparse::CheckIn("the number of sequences", table.sequences, 0, kMaxInt);
  sparse::CheckIn("max_pages", table.max_pages, 0, kMaxInt);
  const core::Strided from =
      sparse::RowsBytes(positions.data, positions.tokens, positions.row_stride, positions.cols, 4);
  const core::Strided pages =
      sparse::RowsBytes(table.data.data(), table.sequences, table.row_stride, table.max_pages,
                        table.data.element_size());
  core::Check(table.data || table.max_pages == 0 || table.sequences == 0, Code::kBadShape,
              "page_table is null");
  core::CheckAddressable("positions", from);
  core::CheckAddressable("page_table", pages);
  if (cu_q_lens.empty()) {
    sparse::CheckSame("positions.tokens", positions.tokens,
                      "the number of sequences (one token each)", table.sequences);
  } else {
    sparse::CheckSame("the number of cu_q_lens", static_cast<int64_t>(cu_q_lens.size()),
                      "the number of sequences + 1", table.sequences + 1);
    core::Check(cu_q_lens.front() == 0 && cu_q_lens.back() == positions.tokens, Code::kBadRange,
                "cu_q_lens runs from ", cu_q_lens.front(), " to ", cu_q_lens.back(),
                ", not from 0 to the number of tokens, ", positions.tokens);
    for (size_t b = 0; b + 1 < cu_q_lens.size(); ++b) {
      core::Check(cu_q_lens[b] <= cu_q_lens[b + 1], Code::kBadRange, "cu_q_lens[", b + 1,
                  "] = ", cu_q_lens[b + 1], " is below the one before it");
    }
  }
  if (positions.tokens == 0 || positions.cols == 0) {
    return;
  }
  core::Check(positions.data != nullptr, Code::kBadShape, "positions is null");
  core::Check(slots.data != nullptr, Code::kBadShape, "slots is null");
  const bool in_place = slots.data == positions.data && slots.row_stride == positions.row_stride;
  const sparse::NamedBytes inputs[] = {
      {"page_table", pages}, {"cu_q_lens", sparse::SpanBytes(cu_q_lens)}, {"positions", from}};
  sparse::CheckOutput({"slots", sparse::RowsBytes(slots.data, positions.tokens, slots.row_stride,
                                                  positions.cols, 4)},
                      std::span(inputs, in_place ? 2 : 3));
}

// The page of a position in a sequence's row of the table, or -1.
int64_t PageOf(const PageTableView& table, int64_t sequence, int64_t position) {
  const int64_t page = position / table.page_size;
  return position < 0 || page >= table.max_pages ? -1
                                                 : table.data[sequence * table.row_stride + page];
}

// f(token, sequence) for all tokens.
template <class F>
void ForTokens(int64_t tokens, const IndexSpan& cu_q_lens, const F& f) {
  size_t sequence = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    if (cu_q_lens.empty()) {
      f(token, token);
      continue;
    }
    while (sequence + 2 < cu_q_lens.size() && cu_q_lens[sequence + 1] <= token) {
      ++sequence;
    }
    f(token, static_cast<int64_t>(sequence));
  }
}

}  // namespace

void PositionsToSlots(const PositionsView& positions, const PageTableView& table,
                      IndexSpan cu_q_lens, const OutView<int32_t>& slots) try {
  const core::EntryPoint entry;
  CheckPositions(positions, table, cu_q_lens, slots);
  ForTokens(positions.tokens, cu_q_lens, [&](int64_t token, int64_t sequence) {
    const int32_t* from = positions.data + token * positions.row_stride;
    for (int64_t i = 0; i < positions.cols; ++i) {
      const int64_t page = PageOf(table, sequence, from[i]);
      core::Check(core::SaturatingMul(page + 1, table.page_size) <= kMaxInt, Code::kBadPage,
                  "page_table[", sequence, ",", from[i] / table.page_size, "] = ", page,
                  " is a page of ", table.page_size, " slots, some of them beyond int32");
    }
  });
  ForTokens(positions.tokens, cu_q_lens, [&](int64_t token, int64_t sequence) {
    const int32_t* from = positions.data + token * positions.row_stride;
    int32_t* to = slots.data + token * slots.row_stride;
    for (int64_t i = 0; i < positions.cols; ++i) {
      const int64_t position = from[i];
      const int64_t page = PageOf(table, sequence, position);
      to[i] =
          page < 0 ? -1 : static_cast<int32_t>(page * table.page_size + position % table.page_size);
    }
  });
} catch (...) {
  core::RethrowAsError();
}

void ExpandBlocks(const PositionsView& blocks, int64_t block, std::span<const int32_t> ends,
                  const OutView<int32_t>& positions) try {
  const core::EntryPoint entry;
  sparse::CheckIn("blocks.tokens", blocks.tokens, 0, kMaxInt);
  sparse::CheckIn("blocks.cols", blocks.cols, 0, kMaxInt);
  core::Check(block >= 1 && block <= kMaxInt, Code::kBadOption, "block = ", block, " is not in 1..",
              kMaxInt);
  core::Check(blocks.cols * block <= kMaxInt, Code::kBadShape, "blocks.cols = ", blocks.cols,
              " times block = ", block, " positions are beyond int32");
  sparse::CheckSame("the number of ends", static_cast<int64_t>(ends.size()), "blocks.tokens",
                    blocks.tokens);
  for (size_t t = 0; t < ends.size(); ++t) {
    core::Check(ends[t] >= 0, Code::kBadRange, "ends[", t, "] = ", ends[t], " is negative");
  }
  if (blocks.tokens == 0 || blocks.cols == 0) {
    return;
  }
  core::Check(blocks.data != nullptr, Code::kBadShape, "blocks is null");
  core::Check(positions.data != nullptr, Code::kBadShape, "positions is null");
  const core::Strided from =
      sparse::RowsBytes(blocks.data, blocks.tokens, blocks.row_stride, blocks.cols, 4);
  core::CheckAddressable("blocks", from);
  const sparse::NamedBytes inputs[] = {{"blocks", from}, {"ends", sparse::SpanBytes(ends)}};
  sparse::CheckOutput(
      {"positions", sparse::RowsBytes(positions.data, blocks.tokens, positions.row_stride,
                                      core::SaturatingMul(blocks.cols, block), 4)},
      inputs);
  for (int64_t t = 0; t < blocks.tokens; ++t) {
    const int64_t end = ends[static_cast<size_t>(t)];
    int32_t* to = positions.data + t * positions.row_stride;
    for (int64_t i = 0; i < blocks.cols; ++i) {
      const int64_t first = blocks.data[t * blocks.row_stride + i] * block;
      for (int64_t j = 0; j < block; ++j) {
        *to++ = first < 0 || first + j >= end ? -1 : static_cast<int32_t>(first + j);
      }
    }
  }
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
