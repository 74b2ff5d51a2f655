// The doors of top-k: validate, plan, run.
#include "riffle/topk.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "core/check.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/targets.h"
#include "topk/narrow.h"
#include "topk/topk_batch.h"
#include "topk/topk_check.h"
#include "topk/topk_kernels.h"

namespace riffle {
namespace {

// A row shorter than this is not worth the two synchronisations of splitting it.
constexpr int64_t kSplitBytes = 64 * 1024;
constexpr int64_t kMaxSplitRows = 64;

// Rows are handed out together until they make this much work, since threads that take one short
// row after another wait for the counter they share: 32 rows of 64 took 11.5 us on two threads and
// 7.7 on one. What is less than a few tasks is done by the calling thread.
constexpr int64_t kTaskNs = 2000;
constexpr int64_t kSerialNs = 8000;

// Roughly what a row takes (f32, AVX-512).
int64_t RowNs(int64_t n, int64_t k) { return 100 + n / 2 + 8 * k; }

// The planner takes milliseconds for a large k; engines ask for the same shape at every step.
std::span<const int> Schedule(const topk::TopKBatch& batch, const TopKOptions& options) {
  if (!options.depth_schedule.empty()) {
    return options.depth_schedule;
  }
  struct Shape {
    int64_t n, k, lanes;
    int64_t depths;  // that follow it in memory
    bool operator==(const Shape&) const = default;
  };
  static_assert(sizeof(Shape) % alignof(int) == 0);
  core::Arena& arena = core::ThreadScratch::Of(core::ThreadScratch::kLaneDepths);
  Shape shape{batch.x.cols, std::min(batch.width, batch.x.cols), options.lanes, 0};
  const auto* last = reinterpret_cast<const Shape*>(arena.data());
  if (last != nullptr) {
    shape.depths = last->depths;
  }
  if (last == nullptr || *last != shape) {
    const std::vector<int> schedule = topk::PlanDepths(shape.n, shape.k, options.lanes);
    shape.depths = static_cast<int64_t>(schedule.size());
    uint8_t* memory = arena.Get(sizeof(Shape) + schedule.size() * sizeof(int));
    std::memcpy(memory + sizeof(Shape), schedule.data(), schedule.size() * sizeof(int));
    last = new (memory) Shape(shape);
  }
  return {reinterpret_cast<const int*>(last + 1), static_cast<size_t>(last->depths)};
}

void RunLaneSorts(const topk::TopKBatch& batch, const TopKOptions& options, core::Lease& lease) {
  const topk::LaneOptions lanes{options.lanes, Schedule(batch, options)};
  size_t scratch = 0;
  for (int64_t row = 0; row < batch.x.rows; ++row) {
    const topk::RowTask task = batch.Task(row, options);
    scratch = task.n > 0 ? std::max(scratch, topk::LaneSortScratch(task, lanes)) : scratch;
  }
  lease.ReserveScratch(scratch);
  lease.Run(batch.x.rows, [&](int64_t row, uint8_t* memory) {
    const topk::RowTask task = batch.Task(row, options);
    if (task.n > 0) {
      topk::RunLaneSort(task, lanes, memory);
    }
    batch.PadRow(task);
  });
}

// Few rows: the first pass of each is split over the threads.
void RunSplit(const topk::TopKBatch& batch, const TopKOptions& options, core::Lease& lease,
              size_t maxima_bytes) {
  const topk::TopKKernels& kernels = topk::Kernels();
  const int64_t rows = batch.x.rows;
  const int64_t parts = lease.threads();
  uint8_t* shared =
      lease.Shared(static_cast<size_t>(rows) * maxima_bytes + static_cast<size_t>(rows * parts));
  uint8_t* in_order = shared + static_cast<size_t>(rows) * maxima_bytes;
  const auto maxima = [&](int64_t row) { return shared + static_cast<size_t>(row) * maxima_bytes; };
  const auto first = [&](int64_t row, int64_t part, topk::FirstPass pass) {
    const topk::RowTask task = batch.Task(row, options);
    const int64_t buckets = task.plan.buckets;
    const int64_t per_part =
        (buckets / parts + topk::kMinBucket) / topk::kMinBucket * topk::kMinBucket;
    const int64_t begin = std::min(buckets, part * per_part);
    const int64_t end = std::min(buckets, begin + per_part);
    in_order[row * parts + part] = buckets == 0 ||  // the row has no first pass: see PlanBuckets
                                   kernels.first(task, begin, end, pass, maxima(row));
  };
  lease.Run(rows * parts,
            [&](int64_t i, uint8_t*) { first(i / parts, i % parts, topk::FirstPass::kPositive); });
  bool again = false;
  topk::FirstPass pass[kMaxSplitRows] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const topk::RowTask task = batch.Task(row, options);
    if (task.plan.buckets != 0) {
      const uint8_t* of_row = in_order + row * parts;
      pass[row] = std::all_of(of_row, of_row + parts, [](uint8_t ok) { return ok != 0; })
                      ? kernels.suited(task, maxima(row))
                      : topk::FirstPass::kKeyed;
      again |= pass[row] != topk::FirstPass::kPositive;
    }
  }
  if (again) {
    lease.Run(rows * parts, [&](int64_t i, uint8_t*) {
      if (pass[i / parts] != topk::FirstPass::kPositive) {
        first(i / parts, i % parts, pass[i / parts]);
      }
    });
  }
  lease.Run(rows, [&](int64_t row, uint8_t* scratch) {
    const topk::RowTask task = batch.Task(row, options);
    if (task.n > 0) {
      kernels.finish(task, pass[row], maxima(row), scratch);
    }
    batch.PadRow(task);
  });
}

void RunBucketMaxima(const topk::TopKBatch& batch, const TopKOptions& options, core::Lease& lease) {
  size_t scratch = 0;
  size_t maxima = 0;
  const bool uniform = batch.k.empty() && batch.ends.empty();
  if (uniform && topk::RunNarrow(batch.x, batch.width, batch.out, options, lease)) {
    return;
  }
  for (int64_t row = 0; row < (uniform ? 1 : batch.x.rows); ++row) {
    const topk::RowTask task = batch.Task(row, options);
    if (task.n > 0) {
      scratch = std::max(scratch, topk::BucketMaximaScratch(task));
      maxima = std::max(maxima, topk::MaximaBytes(task));
    }
  }
  lease.ReserveScratch(scratch);
  const int64_t threads = lease.threads();
  const bool uneven = batch.x.rows < 4 * threads && batch.x.rows % threads != 0;
  if (uneven && batch.x.rows <= kMaxSplitRows &&
      batch.x.cols * static_cast<int64_t>(SizeOf(batch.x.dtype)) >= kSplitBytes) {
    RunSplit(batch, options, lease, maxima);
    return;
  }
  const topk::TopKKernels& kernels = topk::Kernels();
  const int64_t rows = batch.x.rows;
  const int64_t row_ns = RowNs(batch.x.cols, std::min(batch.width, batch.x.cols));
  const int64_t together =
      rows <= kSerialNs / row_ns ? rows : std::max<int64_t>(1, kTaskNs / row_ns);
  lease.Run((rows + together - 1) / together, [&](int64_t i, uint8_t* memory) {
    const int64_t end = std::min(rows, (i + 1) * together);
    for (int64_t row = i * together; row < end; ++row) {
      const topk::RowTask task = batch.Task(row, options);
      if (task.n > 0) {
        kernels.row(task, memory);
      }
      batch.PadRow(task);
    }
  });
}

void Run(const topk::TopKBatch& batch, const TopKOptions& options) {
  topk::CheckOptions(options);
  topk::CheckOutputs(batch);
  core::EnsureTarget();
  if (batch.x.rows == 0) {
    return;
  }
  core::Lease lease(options.pool);
  if (options.algorithm == Algorithm::kLaneSort) {
    RunLaneSorts(batch, options, lease);
  } else {
    RunBucketMaxima(batch, options, lease);
  }
}

}  // namespace

void TopK(const MatrixView& x, int64_t k, const TopKOut& out, const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  core::Check(k >= 1 && k <= x.cols, Code::kBadK, "k = ", k, " is not in 1..", x.cols,
              ", the columns of x");
  core::Check(out.values != nullptr || x.rows == 0, Code::kBadShape, "values is null");
  Run({.x = x, .out = out, .width = k}, options);
} catch (...) {
  core::RethrowAsError();
}

void TopK(const MatrixView& x, std::span<const int32_t> k, const TopKOut& out,
          const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  core::Check(static_cast<int64_t>(k.size()) == x.rows, Code::kBadShape, "k has ", k.size(),
              " elements for ", x.rows, " rows");
  int64_t width = 0;
  for (size_t row = 0; row < k.size(); ++row) {
    core::Check(k[row] >= 1 && k[row] <= x.cols, Code::kBadK, "k[", row, "] = ", k[row],
                " is not in 1..", x.cols, ", the columns of x");
    width = std::max<int64_t>(width, k[row]);
  }
  core::Check(out.values != nullptr || x.rows == 0, Code::kBadShape, "values is null");
  Run({.x = x, .out = out, .width = width, .k = k}, options);
} catch (...) {
  core::RethrowAsError();
}

void TopKPerRow(const MatrixView& x, std::span<const int32_t> starts, std::span<const int32_t> ends,
                int64_t k, const OutView<int32_t>& indices, const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  core::Check(k >= 1 && k <= topk::kMaxColumns, Code::kBadK, "k = ", k, " is not in 1..",
              topk::kMaxColumns);
  core::Check(static_cast<int64_t>(starts.size()) == x.rows, Code::kBadShape, "starts has ",
              starts.size(), " elements for ", x.rows, " rows");
  core::Check(static_cast<int64_t>(ends.size()) == x.rows, Code::kBadShape, "ends has ",
              ends.size(), " elements for ", x.rows, " rows");
  for (size_t row = 0; row < starts.size(); ++row) {
    core::Check(starts[row] >= 0, Code::kBadRange, "starts[", row, "] = ", starts[row],
                " is negative");
    core::Check(ends[row] <= x.cols, Code::kBadRange, "ends[", row, "] = ", ends[row],
                " is past the ", x.cols, " columns of x");
  }
  Run({.x = x,
       .out = {.indices = indices.data, .indices_stride = indices.row_stride},
       .width = k,
       .starts = starts,
       .ends = ends},
      options);
} catch (...) {
  core::RethrowAsError();
}

void TopKPerRowDecode(const MatrixView& x, std::span<const int32_t> seq_lens, int next_n, int64_t k,
                      const OutView<int32_t>& indices, const TopKOptions& options) try {
  const core::EntryPoint entry;
  topk::CheckInput(x);
  core::Check(k >= 1 && k <= topk::kMaxColumns, Code::kBadK, "k = ", k, " is not in 1..",
              topk::kMaxColumns);
  core::Check(next_n >= 1, Code::kBadOption, "next_n = ", next_n, " is not positive");
  core::Check(x.rows % next_n == 0 && static_cast<int64_t>(seq_lens.size()) == x.rows / next_n,
              Code::kBadShape, "seq_lens has ", seq_lens.size(), " elements for ", x.rows,
              " rows of ", next_n, " a sequence");
  for (size_t i = 0; i < seq_lens.size(); ++i) {
    core::Check(seq_lens[i] <= x.cols, Code::kBadRange, "seq_lens[", i, "] = ", seq_lens[i],
                " is past the ", x.cols, " columns of x");
  }
  Run({.x = x,
       .out = {.indices = indices.data, .indices_stride = indices.row_stride},
       .width = k,
       .ends = seq_lens,
       .next_n = next_n},
      options);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
