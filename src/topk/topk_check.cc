#include "topk/topk_check.h"

#include <algorithm>
#include <span>

#include "core/check.h"
#include "core/overlap.h"

namespace riffle::topk {
namespace {

constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();
constexpr int kMaxLanes = 4096;

// Rows of an output may not share bytes, and must lie within 64 bits of addresses.
void CheckStride(const char* name, int64_t stride, int64_t rows, int64_t width, int64_t element) {
  int64_t bytes = 0;
  core::Check(!__builtin_mul_overflow(stride, rows, &bytes) &&
                  !__builtin_mul_overflow(bytes, element, &bytes) && bytes != kLowest,
              Code::kBadShape, "the row stride ", stride, " of ", name, " times ", rows,
              " rows does not fit an address");
  core::Check(rows <= 1 || (stride < 0 ? -stride : stride) >= width, Code::kOverlap,
              "the row stride ", stride, " of ", name, " makes its rows of ", width,
              " elements overlap");
}

}  // namespace

void CheckInput(const MatrixView& x) {
  core::Check(x.rows >= 0, Code::kBadShape, "x has ", x.rows, " rows; at least 0 are needed");
  core::Check(x.cols >= 1 && x.cols <= kMaxColumns, Code::kBadShape, "x has ", x.cols,
              " columns; 1 to ", kMaxColumns, " are possible");
  core::Check(x.dtype <= DType::kBF16, Code::kBadDType, "x has the unknown dtype ",
              static_cast<int>(x.dtype));
  core::Check(x.data != nullptr || x.rows == 0, Code::kBadShape, "x.data is null");
  int64_t extent = 0;
  core::Check(!__builtin_mul_overflow(x.row_stride, std::max<int64_t>(x.rows, 1), &extent) &&
                  !__builtin_mul_overflow(extent, int64_t{4}, &extent) && extent != kLowest,
              Code::kBadShape, "x's row stride ", x.row_stride, " times its ", x.rows,
              " rows does not fit an address");
}

void CheckOptions(const TopKOptions& options) {
  core::Check(options.algorithm <= Algorithm::kLaneSort, Code::kBadOption,
              "algorithm = ", static_cast<int>(options.algorithm),
              " is none of auto, bucket maxima and lane sort");
  core::Check(options.lanes >= 1 && options.lanes <= kMaxLanes &&
                  (options.lanes & (options.lanes - 1)) == 0,
              Code::kBadOption, "lanes = ", options.lanes, " is not a power of two from 1 to ",
              kMaxLanes);
  int last = 0;
  for (const int depth : options.depth_schedule) {
    core::Check(depth > last, Code::kBadOption, "depth_schedule has ", depth, " after ", last,
                "; depths are positive and increase");
    last = depth;
  }
}

void CheckOutputs(const TopKBatch& batch) {
  if (batch.x.rows == 0) {
    return;
  }
  const auto element = static_cast<int64_t>(SizeOf(batch.x.dtype));
  struct Named {
    const char* name;
    core::ByteRows rows;
  };
  const auto bytes = [](std::span<const int32_t> span) {
    return core::ByteRows{span.data(), 1, 0, static_cast<int64_t>(span.size_bytes())};
  };
  const int64_t rows = batch.x.rows;
  const bool wide = batch.out.wide_indices != nullptr;
  const void* const indices = wide ? static_cast<const void*>(batch.out.wide_indices)
                                   : static_cast<const void*>(batch.out.indices);
  core::Check(indices != nullptr, Code::kBadShape, "indices is null");
  core::Check(!wide || batch.out.indices == nullptr, Code::kBadShape,
              "indices and wide_indices are both given; one of them must be null");
  CheckStride("values", batch.out.values_stride, batch.out.values != nullptr ? rows : 0,
              batch.width, 4);
  CheckStride("indices", batch.out.indices_stride, rows, batch.width, wide ? 8 : 4);
  const Named outputs[] = {
      {"values",
       {batch.out.values, batch.out.values != nullptr ? rows : 0, batch.out.values_stride * element,
        batch.width * element}},
      {"indices",
       {indices, rows, batch.out.indices_stride * (wide ? 8 : 4), batch.width * (wide ? 8 : 4)}},
      {"stats",
       {batch.out.stats, batch.out.stats != nullptr ? rows : 0, sizeof(TopKStats),
        sizeof(TopKStats)}}};
  const Named inputs[] = {
      {"x", {batch.x.data, rows, batch.x.row_stride * element, batch.x.cols * element}},
      {"k", bytes(batch.k)},
      {"starts", bytes(batch.starts)},
      {batch.next_n > 0 ? "seq_lens" : "ends", bytes(batch.ends)}};
  for (const Named& out : outputs) {
    for (const Named& in : inputs) {
      core::Check(!core::Overlaps(out.rows, in.rows), Code::kOverlap, out.name,
                  " shares memory with ", in.name, ", which is only read");
    }
    for (const Named* other = outputs; other != &out; ++other) {
      core::Check(!core::Overlaps(out.rows, other->rows), Code::kOverlap, out.name,
                  " shares memory with ", other->name);
    }
  }
}

}  // namespace riffle::topk
