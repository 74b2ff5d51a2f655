#include "topk/execution_plan.h"

#include <algorithm>

#include "core/check.h"
#include "topk/topk_args.h"
#include "topk/topk_check.h"

namespace riffle {
namespace {

// Splitting a row costs two synchronisations; a shorter row than this is not worth them.
constexpr int64_t kSplitBytes = 64 * 1024;

// A task takes so many rows that it has about this much work, because threads that fetch short rows
// one by one contend for the shared counter: 32 rows of 64 took 11.5 us on two threads, 7.7 us on
// one. Work of less than kSerialNs stays on the calling thread.
constexpr int64_t kTaskNs = 2000;
constexpr int64_t kNarrowTaskNs = 4000;
constexpr int64_t kSerialNs = 8000;

// The approximate time of a row (f32, AVX-512).
int64_t RowNs(int64_t n, int64_t k) { return 100 + n / 2 + 8 * k; }

// The approximate time of a tile of `lanes` rows (AVX-512).
int64_t TileNs(int64_t n, int64_t k, int64_t lanes) {
  const int64_t column = k <= static_cast<int64_t>(topk::kNarrowSink) ? 3 + k / 3 : 20;
  return 50 + n * column + lanes * k / 2;
}

// The narrow kernel takes the same time for 1 row as for `narrow_lanes`. It wins up to 16 columns
// per lane, with 8 lanes of float32 up to 256, and also for fewer rows than lanes if columns or k
// are few (docs/lab/top-k.md). It sorts each row even if that is not required. So does the kernel
// for single rows if a row is this short (it ranks up to select::kRankLimit = 256 elements): an
// answer may depend neither on the target nor on how many rows there are.
bool IsNarrow(const topk::TopKShape& shape) {
  constexpr int64_t kMaxNarrow = 256;
  const int64_t lanes = shape.narrow_lanes;
  const int64_t columns = lanes >= 8 ? kMaxNarrow : 16 * lanes;
  const int64_t rows_that_pay = shape.k <= 8 ? shape.n / 32 : shape.n / 8;
  return shape.uniform && !shape.stats && shape.n <= columns &&
         shape.rows >= std::min(rows_that_pay, lanes);
}

// Groups chunks that take `ns` each into tasks of about `task_ns`; all into one task if there are
// so few that threads do not pay.
TopKExecution GroupIntoTasks(TopKExecution::Way way, int64_t chunks, int64_t ns, int64_t task_ns,
                             int64_t rows_per_chunk) {
  const int64_t per_task =
      chunks <= kSerialNs / ns ? std::max<int64_t>(1, chunks) : std::max<int64_t>(1, task_ns / ns);
  return {way, per_task * rows_per_chunk, (chunks + per_task - 1) / per_task};
}

}  // namespace

TopKExecution topk::PlanExecution(const topk::TopKShape& shape, int threads) {
  using Way = TopKExecution::Way;
  if (IsNarrow(shape)) {
    const int64_t lanes = shape.narrow_lanes;
    return GroupIntoTasks(Way::kNarrow, (shape.rows + lanes - 1) / lanes,
                          TileNs(shape.n, shape.k, lanes), kNarrowTaskNs, lanes);
  }
  const bool uneven = shape.rows < int64_t{4} * threads && shape.rows % threads != 0;
  if (uneven && shape.rows <= topk::kMaxSplitRows &&
      shape.n * static_cast<int64_t>(SizeOf(shape.dtype)) >= kSplitBytes) {
    return {Way::kSplit, 1, shape.rows * threads};
  }
  return GroupIntoTasks(Way::kRows, shape.rows, RowNs(shape.n, std::min(shape.k, shape.n)), kTaskNs,
                        1);
}

int64_t topk::NarrowLanes(DType dtype, int vector_bytes) {
  const size_t element = SizeOf(dtype);
  return element == 8 ? 0 : vector_bytes / (element == 4 ? 8 : 4);
}

TopKExecution PlanTopKExecution(int64_t rows, int64_t n, int64_t k, DType dtype, int threads,
                                int vector_bytes) {
  core::Check(rows >= 0, Code::kBadShape, "rows = ", rows, " but must not be negative");
  core::Check(n >= 1 && n <= topk::kMaxColumns, Code::kBadShape, "n = ", n, " but must be in 1..",
              topk::kMaxColumns);
  core::Check(k >= 1 && k <= n, Code::kBadK, "k = ", k, " but must be in 1..n = ", n);
  core::Check(static_cast<int>(dtype) < kNumTopKDTypes, Code::kBadDType,
              "dtype = ", static_cast<int>(dtype), " is unknown");
  core::Check(threads >= 1, Code::kBadOption, "threads = ", threads, " but must be at least 1");
  core::Check(vector_bytes == 16 || vector_bytes == 32 || vector_bytes == 64, Code::kBadOption,
              "vector_bytes = ", vector_bytes, " but must be 16, 32 or 64");
  return topk::PlanExecution({.rows = rows,
                              .n = n,
                              .k = k,
                              .dtype = dtype,
                              .narrow_lanes = topk::NarrowLanes(dtype, vector_bytes)},
                             threads);
}

}  // namespace riffle
