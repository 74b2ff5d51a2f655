// Exact top-k of the rows of a matrix, and of ranges of its rows.
//
// The order, here and everywhere in Riffle: descending by value; NaN of either sign above +inf, all
// NaNs equal; -0 equals +0; equal values by ascending index. Results are a pure function of the
// input: they have the same bits for any thread count, SIMD target, algorithm and batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "riffle/export.h"
#include "riffle/runtime.h"
#include "riffle/types.h"

namespace riffle {

// Selection supports this many dtypes, the first ones of DType.
inline constexpr int kNumTopKDTypes = 12;

enum class Algorithm : uint8_t {
  kAuto,          // by measurement; bucket maxima at present for every shape (docs/performance.md)
  kBucketMaxima,  // a streaming pass of bucket maxima proves a bound; only buckets that reach it
                  // are looked at again
  kLaneSort,      // the m best of each lane by a sinking sort, m raised until a certificate proves
                  // that the k best are among them (oliverdutton/fast_exact_topk_tpu); float32,
                  // float16 and bfloat16 only
};

// Ids of the columns of x: instead of column c of row r, the call returns id (r, c).
struct IdsView {
  const void* data = nullptr;  // [rows, n], columns contiguous; null: columns are their own ids
  IndexType type = IndexType::kInt32;
  int64_t row_stride = 0;  // elements; 0: one row of ids for all
};

struct TopKOptions {
  Algorithm algorithm = Algorithm::kAuto;
  bool sorted = true;  // false: the same set in an unspecified, still deterministic order
  // false: the k smallest, ascending, in the reverse order of values: NaNs come last, -0 equals +0,
  // equal values are in ascending order of index. Padding is then +inf.
  bool largest = true;
  int lanes = 128;  // lane sort: a power of two, 1 to 4096; column c belongs to lane c % lanes
  // Lane sort: the depths m to try in turn, strictly increasing; empty: the planner chooses. If the
  // last one does not suffice for a row, doubled depths follow, so every row is answered.
  std::span<const int> depth_schedule = {};
  ThreadPool* pool = nullptr;  // null: DefaultPool()
  // TopK only: ids to return instead of columns, of the output's index type. Ties still go to the
  // lower column. This merges shards of a row: give their values side by side as x, and their
  // indices as ids.
  IdsView ids = {};
  // TopKPerRow and TopKPerRowDecode only: a range of at most k elements is not read; its answer is
  // 0, 1, ... in this order, then -1, as in FlashInfer and vLLM.
  bool index_order_if_short = false;
};

// What the selection in a row cost, and the ties at its k-th place.
struct TopKStats {
  double kth_value = 0;           // NaN stays NaN; integers beyond 2^53 are rounded
  int64_t ties_at_kth = 0;        // elements of the whole row equal to the k-th value
  int64_t elements_examined = 0;  // elements read beyond the first pass
  int32_t depth = 0;  // lane sort: m - 1 for the schedule step m whose certificate held;
                      // bucket maxima: 1
};

// Outputs [rows, max k]; each has its own row stride in elements. `values` has x's dtype.
struct TopKOut {
  void* values = nullptr;
  int64_t values_stride = 0;
  void* indices = nullptr;  // int32 or int64
  int64_t indices_stride = 0;
  TopKStats* stats = nullptr;  // [rows], optional; counting ties reads the row once more
  IndexType index_type = IndexType::kInt32;
};

// Contiguous outputs [rows, k].
inline TopKOut View(void* values, int32_t* indices, int64_t k) { return {values, k, indices, k}; }
inline TopKOut View(void* values, int64_t* indices, int64_t k) {
  return {values, k, indices, k, nullptr, IndexType::kInt64};
}

// The k best of each row.
//   x    [rows, n]  any dtype, 1 <= n < 2^31; rows may be 0
//   out  values [rows, k] with the bits that they have in x, indices [rows, k]
// Throws Error: kBadK unless 1 <= k <= n; kBadShape; kBadDType for lane sort of a dtype that it
// does not support and for ids of another type than the indices; kBadOption, kOverlap,
// kOutOfMemory. Nothing is written on error. Allocates nothing once the pool's scratch has grown to
// the shape.
RIFFLE_API void TopK(const MatrixView& x, int64_t k, const TopKOut& out,
                     const TopKOptions& options = {});

// The same with one k per row, k[r] in 1..n. Columns k[r] and beyond, up to the largest k, are
// padded: indices with -1, values with -inf or the lowest integer of their dtype (selecting the
// smallest: +inf or the highest).
RIFFLE_API void TopK(const MatrixView& x, std::span<const int32_t> k, const TopKOut& out,
                     const TopKOptions& options = {});

// The k best of x[r, starts[r]:ends[r]), best first, as indices relative to starts[r]; -1 pads rows
// whose range is shorter than k. start >= end is an empty range. Same contract as FlagGems' and
// vLLM's top_k_per_row_prefill, in the order above.
//   x        [rows, n]; starts, ends [rows]; indices [rows, k] int32
// Throws Error: kBadRange for a negative start or an end > n, kBadK unless 1 <= k < 2^31, and as
// TopK. Nothing is written on error.
RIFFLE_API void TopKPerRow(const MatrixView& x, std::span<const int32_t> starts,
                           std::span<const int32_t> ends, int64_t k,
                           const OutView<int32_t>& indices, const TopKOptions& options = {});

// The form for decoding (vLLM's top_k_per_row_decode). x is [batch * next_n, n]; row r sees the
// columns [0, seq_lens[r / next_n] - next_n + r % next_n + 1). If that leaves no column the range
// is empty.
RIFFLE_API void TopKPerRowDecode(const MatrixView& x, std::span<const int32_t> seq_lens, int next_n,
                                 int64_t k, const OutView<int32_t>& indices,
                                 const TopKOptions& options = {});

// P(depth = m) for m = 1..k, as element m - 1. The depth is the largest number of the k best that
// share one of `lanes` lanes if they fall at random. It follows from P(depth <= m) = k!/lanes^k
// [x^k] (sum_{j<=m} x^j/j!)^lanes. Throws Error: kBadK unless 1 <= k <= 65536, kBadOption unless 1
// <= lanes <= 2^20.
RIFFLE_API std::vector<double> DepthProbabilities(int k, int lanes = 128);

// How a call is divided among threads.
struct TopKExecution {
  enum class Way : uint8_t {
    kRows,    // a task takes whole rows, one after another
    kSplit,   // the first pass of each row is split into one chunk per thread
    kNarrow,  // rows of few columns: as many rows at once as a vector has lanes
  };
  Way way = Way::kRows;
  int64_t rows_per_task = 1;
  int64_t tasks = 0;  // at most 1: only the calling thread works
};

// How TopK with bucket maxima divides a shape (the same k for all rows, no statistics) among
// `threads` threads with vectors of `vector_bytes`. Pure. Throws as TopK does.
RIFFLE_API TopKExecution PlanTopKExecution(int64_t rows, int64_t n, int64_t k, DType dtype,
                                           int threads, int vector_bytes = 64);

struct TopKPlan {
  Algorithm algorithm = Algorithm::kBucketMaxima;  // what kAuto runs
  int64_t buckets = 0;                             // bucket maxima: buckets of a row
  int64_t bucket_size = 0;                         // bucket maxima: elements of a bucket
  std::vector<int> depth_schedule;                 // lane sort: depths tried in turn
  std::vector<double> batch_done;   // P(all rows certified at step i) = P(row certified)^rows
  double expected_depth = 0;        // mean over rows of the true depth
  double expected_batch_depth = 0;  // mean of the largest depth among the rows
};

// What TopK does for a shape: a pure function of its arguments (bucket sizes are in elements of
// f32). Throws as TopK does.
RIFFLE_API TopKPlan PlanTopK(int64_t n, int64_t k, int64_t rows = 1, int lanes = 128,
                             std::span<const int> depth_schedule = {});

}  // namespace riffle
