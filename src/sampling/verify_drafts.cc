#include "sampling/verify_drafts.h"

#include <algorithm>
#include <limits>
#include <span>

#include "core/check.h"
#include "core/overlap.h"
#include "core/scratch_layout.h"
#include "sampling/adjust.h"
#include "sampling/sampling_batch.h"
#include "sampling/sampling_check.h"
#include "sampling/sampling_run.h"

namespace riffle::sampling {
namespace {

// The parameters of every row, copied from those of its request.
struct RowLists {
  std::span<float> temperature, top_p, min_p;
  std::span<int32_t> top_k, tokens, drafts;
  std::span<uint64_t> seeds;
  std::span<int64_t> stream, position;
};

class RowListsLayout {
 public:
  explicit RowListsLayout(int64_t rows)
      : rows_(rows),
        floats_(layout_.Place<float>(3 * rows)),
        ints_(layout_.Place<int32_t>(3 * rows)),
        seeds_(layout_.Place<uint64_t>(rows)),
        longs_(layout_.Place<int64_t>(2 * rows)) {}

  size_t bytes() const { return layout_.bytes(); }
  RowLists At(uint8_t* memory) const {
    const auto part = [&](auto* array, int64_t i) {
      return std::span(array + i * rows_, static_cast<size_t>(rows_));
    };
    float* const floats = floats_.At(memory);
    int32_t* const ints = ints_.At(memory);
    int64_t* const longs = longs_.At(memory);
    return {part(floats, 0),
            part(floats, 1),
            part(floats, 2),
            part(ints, 0),
            part(ints, 1),
            part(ints, 2),
            part(seeds_.At(memory), 0),
            part(longs, 0),
            part(longs, 1)};
  }

 private:
  core::ScratchLayout layout_;
  int64_t rows_;
  core::ScratchArray<float> floats_;
  core::ScratchArray<int32_t> ints_;
  core::ScratchArray<uint64_t> seeds_;
  core::ScratchArray<int64_t> longs_;
};

int64_t Requests(const DraftLists& drafts) {
  return static_cast<int64_t>(drafts.offsets.size()) - 1;
}

// Request r has the rows [offsets[r] + r, offsets[r + 1] + r], the last of which has no draft.
void FillRows(const RowLists& rows, const DraftLists& drafts, const SampleOptions& options) {
  size_t row = 0;
  for (int64_t r = 0; r < Requests(drafts); ++r) {
    const int64_t begin = drafts.offsets[static_cast<size_t>(r)];
    const int64_t end = drafts.offsets[static_cast<size_t>(r + 1)];
    for (int64_t i = begin; i <= end; ++i, ++row) {
      rows.temperature[row] = ValueForRow(options.temperature, r, 1.0f);
      rows.top_k[row] = ValueForRow(options.top_k, r, 0);
      rows.top_p[row] = ValueForRow(options.top_p, r, 1.0f);
      rows.min_p[row] = ValueForRow(options.min_p, r, 0.0f);
      rows.seeds[row] = ValueForRow(options.seeds, r, options.seed);
      rows.stream[row] = ValueForRow(options.stream, r, r);
      // Added as unsigned integers: a position may wrap around.
      const auto first = static_cast<uint64_t>(ValueForRow(options.position, r, int64_t{0}));
      rows.position[row] = static_cast<int64_t>(first + static_cast<uint64_t>(i - begin));
      rows.drafts[row] = i < end ? drafts.tokens[static_cast<size_t>(i)] : -1;
    }
  }
}

void WriteTokens(const RowLists& rows, const DraftLists& drafts, const OutView<int32_t>& tokens,
                 int64_t width) {
  for (int64_t r = 0; r < Requests(drafts); ++r) {
    int32_t* const out = tokens.data + r * tokens.row_stride;
    std::fill_n(out, width, -1);
    const auto first = static_cast<size_t>(drafts.offsets[static_cast<size_t>(r)] + r);
    const auto last = static_cast<size_t>(drafts.offsets[static_cast<size_t>(r + 1)] + r);
    for (size_t row = first; row <= last; ++row) {
      out[row - first] = rows.tokens[row];
      if (rows.tokens[row] != rows.drafts[row]) {
        break;
      }
    }
  }
}

}  // namespace

void CheckDrafts(const MatrixView& logits, const DraftLists& drafts, const OutView<int32_t>& tokens,
                 int64_t width, const SampleOptions& options) {
  const int64_t requests = Requests(drafts);
  const auto count = static_cast<int64_t>(drafts.tokens.size());
  core::Check(requests >= 0, Code::kBadShape, "the drafts have no offsets; need requests + 1");
  core::Check(logits.rows == count + requests, Code::kBadShape, "logits has ", logits.rows,
              " rows for ", count, " drafts of ", requests, " requests; the sum of both is needed");
  CheckVerify(logits, options, requests);
  MatrixView by_request = logits;
  by_request.rows = requests;
  CheckTokens("draft_tokens", {drafts.tokens, drafts.offsets}, by_request);
  core::Check(!Adjusts(options), Code::kBadOption,
              "biases, penalties and allowed tokens are not for drafts: apply them to the logits");
  int64_t most = 0;
  for (size_t r = 0; r < static_cast<size_t>(requests); ++r) {
    most = std::max(most, drafts.offsets[r + 1] - drafts.offsets[r]);
  }
  core::Check(requests == 0 || width > most, Code::kBadShape, "tokens has ", width,
              " columns; a request has ", most, " drafts, which takes one column more");
  const MatrixView& q = drafts.probabilities;
  core::Check(
      q.data == nullptr || (q.dtype == DType::kF32 && q.rows == count && q.cols == logits.cols),
      Code::kBadShape, "draft_probs is ", Name(q.dtype), " [", q.rows, ", ", q.cols,
      "]; it must be float32 [", count, ", ", logits.cols, "]");
  const core::ByteRows out{tokens.data, requests, tokens.row_stride * 4, width * 4};
  core::Check(!core::OverlapsItself(out), Code::kOverlap, "the rows of tokens share memory");
  CheckOutputOfDrafts(out, logits, drafts, options);
}

void RunVerify(const MatrixView& logits, const DraftLists& drafts, const OutView<int32_t>& tokens,
               int64_t width, const SampleOptions& options) {
  const RowListsLayout layout(logits.rows);
  SampleOptions of_rows = options;
  // How much memory the batch needs depends on the rows' parameters, which are in that memory: they
  // are filled in twice, because growing the arena discards its contents.
  uint8_t* memory = ReserveArena(layout.bytes());
  const auto fill = [&] {
    const RowLists rows = layout.At(memory);
    FillRows(rows, drafts, options);
    of_rows.temperature = rows.temperature;
    of_rows.top_k = rows.top_k;
    of_rows.top_p = rows.top_p;
    of_rows.min_p = rows.min_p;
    of_rows.seeds = rows.seeds;
    of_rows.stream = rows.stream;
    of_rows.position = rows.position;
    return rows;
  };
  fill();
  memory = ReserveBefore(SamplingBatch(logits, of_rows), layout.bytes());
  const RowLists rows = fill();
  VerifyRows(SamplingBatch(logits, of_rows), rows.drafts, drafts.probabilities, rows.tokens,
             layout.bytes());
  WriteTokens(rows, drafts, tokens, width);
}

}  // namespace riffle::sampling
