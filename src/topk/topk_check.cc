#include "topk/topk_check.h"

#include <algorithm>
#include <span>

#include "core/check.h"
#include "core/overlap.h"

namespace riffle::topk {
namespace {

constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();
constexpr int kMaxLanes = 4096;

// Checks that the rows of an output share no bytes and that every address fits in 64 bits.
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

void CheckIds(const IdsView& ids, const TopKBatch& batch) {
  if (ids.data == nullptr) {
    return;
  }
  core::Check(ids.type == batch.out.index_type, Code::kBadDType, "ids are ", Name(ids.type),
              " but the indices, which they replace, are ", Name(batch.out.index_type));
  int64_t extent = 0;
  core::Check(!__builtin_mul_overflow(ids.row_stride, batch.x.rows, &extent) &&
                  !__builtin_mul_overflow(extent, int64_t{8}, &extent) && extent != kLowest,
              Code::kBadShape, "the row stride ", ids.row_stride, " of ids times ", batch.x.rows,
              " rows does not fit an address");
}

}  // namespace

void CheckInput(const MatrixView& x) {
  core::Check(x.rows >= 0, Code::kBadShape, "x has ", x.rows, " rows; at least 0 are needed");
  core::Check(x.cols >= 1 && x.cols <= kMaxColumns, Code::kBadShape, "x has ", x.cols,
              " columns; 1 to ", kMaxColumns, " are possible");
  core::Check(static_cast<int>(x.dtype) < kNumTopKDTypes, Code::kBadDType, "x is of ",
              Name(x.dtype), " (", static_cast<int>(x.dtype), "), which top-k does not support");
  core::Check(x.data != nullptr || x.rows == 0, Code::kBadShape, "x.data is null");
  int64_t extent = 0;
  core::Check(!__builtin_mul_overflow(x.row_stride, std::max<int64_t>(x.rows, 1), &extent) &&
                  !__builtin_mul_overflow(extent, static_cast<int64_t>(SizeOf(x.dtype)), &extent) &&
                  extent != kLowest,
              Code::kBadShape, "x's row stride ", x.row_stride, " times its ", x.rows,
              " rows does not fit an address");
}

void CheckOptions(const TopKOptions& options, DType dtype) {
  core::Check(options.algorithm <= Algorithm::kLaneSort, Code::kBadOption,
              "algorithm = ", static_cast<int>(options.algorithm),
              " is none of auto, bucket maxima and lane sort");
  core::Check(
      options.algorithm != Algorithm::kLaneSort || dtype <= DType::kBF16, Code::kBadDType, "x is ",
      Name(dtype),
      " but lane sort supports float32, float16 and bfloat16 only; bucket maxima supports all");
  CheckLanes(options.lanes, options.depth_schedule);
}

void CheckLanes(int lanes, std::span<const int> depth_schedule) {
  core::Check(lanes >= 1 && lanes <= kMaxLanes && (lanes & (lanes - 1)) == 0, Code::kBadOption,
              "lanes = ", lanes, " is not a power of two from 1 to ", kMaxLanes);
  int last = 0;
  for (const int depth : depth_schedule) {
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
  core::Check(batch.out.indices != nullptr, Code::kBadShape, "indices is null");
  core::Check(batch.out.index_type <= IndexType::kInt64, Code::kBadOption,
              "index_type = ", static_cast<int>(batch.out.index_type),
              " is neither int32 nor int64");
  const auto index = static_cast<int64_t>(SizeOf(batch.out.index_type));
  const IdsView& ids = batch.options.ids;
  CheckIds(ids, batch);
  CheckStride("values", batch.out.values_stride, batch.out.values != nullptr ? rows : 0,
              batch.width, element);
  CheckStride("indices", batch.out.indices_stride, rows, batch.width, index);
  const Named outputs[] = {
      {"values",
       {batch.out.values, batch.out.values != nullptr ? rows : 0, batch.out.values_stride * element,
        batch.width * element}},
      {"indices", {batch.out.indices, rows, batch.out.indices_stride * index, batch.width * index}},
      {"stats",
       {batch.out.stats, batch.out.stats != nullptr ? rows : 0, sizeof(TopKStats),
        sizeof(TopKStats)}}};
  const Named inputs[] = {
      {"x", {batch.x.data, rows, batch.x.row_stride * element, batch.x.cols * element}},
      {"k", bytes(batch.k)},
      {"ids",
       {ids.data, ids.data != nullptr ? rows : 0, ids.row_stride * index, batch.x.cols * index}},
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
