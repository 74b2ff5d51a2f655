#include "topk/topk_run.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "core/lease.h"
#include "core/scratch.h"
#include "topk/execution_plan.h"
#include "topk/topk_kernels.h"

namespace riffle::topk {
namespace {

// Kept from call to call: planning takes milliseconds for a large k, and engines ask for the same
// shape at every step.
std::span<const int> Schedule(const TopKBatch& batch) {
  if (!batch.options.depth_schedule.empty()) {
    return batch.options.depth_schedule;
  }
  struct Shape {
    int64_t n, k, lanes;
    int64_t depths;  // how many depths follow this struct in memory
    bool operator==(const Shape&) const = default;
  };
  static_assert(sizeof(Shape) % alignof(int) == 0);
  core::Arena& arena = core::ThreadScratch::Of(core::ThreadScratch::kLaneDepths);
  Shape shape{batch.x.cols, std::min(batch.width, batch.x.cols), batch.options.lanes, 0};
  const auto* last = reinterpret_cast<const Shape*>(arena.data());
  if (last != nullptr) {
    shape.depths = last->depths;
  }
  if (last == nullptr || *last != shape) {
    const std::vector<int> schedule = PlanDepths(shape.n, shape.k, batch.options.lanes);
    shape.depths = static_cast<int64_t>(schedule.size());
    uint8_t* memory = arena.Get(sizeof(Shape) + schedule.size() * sizeof(int));
    std::memcpy(memory + sizeof(Shape), schedule.data(), schedule.size() * sizeof(int));
    last = new (memory) Shape(shape);
  }
  return {reinterpret_cast<const int*>(last + 1), static_cast<size_t>(last->depths)};
}

void RunLaneSorts(const TopKBatch& batch, core::Lease& lease) {
  const LaneOptions lanes{batch.options.lanes, Schedule(batch)};
  size_t scratch = 0;
  for (int64_t row = 0; row < batch.x.rows; ++row) {
    const RowTask task = batch.Task(row);
    scratch = batch.HasWork(task) ? std::max(scratch, LaneSortScratch(task, lanes)) : scratch;
  }
  lease.ReserveScratch(scratch);
  lease.Run(batch.x.rows, [&](int64_t row, uint8_t* memory) {
    const RowTask task = batch.Task(row);
    if (batch.HasWork(task)) {
      RunLaneSort(task, lanes, memory);
    }
    batch.FinishRow(row, task);
  });
}

// The most bytes that any row of the call needs.
struct RowBytes {
  size_t scratch = 0;
  size_t maxima = 0;
};

RowBytes BytesOfRows(const TopKBatch& batch) {
  RowBytes bytes;
  for (int64_t row = 0; row < (batch.uniform() ? 1 : batch.x.rows); ++row) {
    const RowTask task = batch.Task(row);
    if (batch.HasWork(task)) {
      bytes.scratch = std::max(bytes.scratch, BucketMaximaScratch(task));
      bytes.maxima = std::max(bytes.maxima, MaximaBytes(task));
    }
  }
  return bytes;
}

// A few rows: the first pass of each is split over the threads.
class SplitRows {
 public:
  SplitRows(const TopKBatch& batch, core::Lease& lease, size_t maxima_bytes)
      : batch_(batch),
        kernels_(Kernels(batch.x.dtype)),
        lease_(lease),
        rows_(batch.x.rows),
        chunks_(lease.threads()),
        first_(IsFloat(batch.x.dtype) ? FirstPass::kPositive : FirstPass::kKeyed),
        maxima_bytes_(maxima_bytes),
        maxima_(lease.Shared(static_cast<size_t>(rows_) * maxima_bytes +
                             static_cast<size_t>(rows_ * chunks_))),
        in_order_(maxima_ + static_cast<size_t>(rows_) * maxima_bytes) {}

  void Run() {
    lease_.Run(rows_ * chunks_,
               [&](int64_t i, uint8_t*) { RunFirstPass(i / chunks_, i % chunks_, first_); });
    if (ChoosePasses()) {
      lease_.Run(rows_ * chunks_, [&](int64_t i, uint8_t*) {
        if (pass_[i / chunks_] != first_) {
          RunFirstPass(i / chunks_, i % chunks_, pass_[i / chunks_]);
        }
      });
    }
    lease_.Run(rows_, [&](int64_t row, uint8_t* scratch) {
      const RowTask task = batch_.Task(row);
      if (batch_.HasWork(task)) {
        kernels_.finish(task, pass_[row], MaximaOf(row), scratch);
      }
      batch_.FinishRow(row, task);
    });
  }

 private:
  uint8_t* MaximaOf(int64_t row) const {
    return maxima_ + static_cast<size_t>(row) * maxima_bytes_;
  }

  void RunFirstPass(int64_t row, int64_t chunk, FirstPass pass) {
    const RowTask task = batch_.Task(row);
    const int64_t buckets = task.plan.buckets;
    const int64_t per_chunk = (buckets / chunks_ + kMinBucket) / kMinBucket * kMinBucket;
    const int64_t begin = std::min(buckets, chunk * per_chunk);
    const int64_t end = std::min(buckets, begin + per_chunk);
    in_order_[row * chunks_ + chunk] = buckets == 0 ||  // see PlanBuckets: no first pass
                                       kernels_.first_pass(task, begin, end, pass, MaximaOf(row));
  }

  // Returns whether some row needs a different first pass from the one it had.
  bool ChoosePasses() {
    bool again = false;
    for (int64_t row = 0; row < rows_; ++row) {
      const RowTask task = batch_.Task(row);
      pass_[row] = first_;
      if (task.plan.buckets != 0 && first_ != FirstPass::kKeyed) {
        const uint8_t* of_row = in_order_ + row * chunks_;
        pass_[row] = std::all_of(of_row, of_row + chunks_, [](uint8_t ok) { return ok != 0; })
                         ? kernels_.choose_first_pass(task, MaximaOf(row))
                         : FirstPass::kKeyed;
        again |= pass_[row] != first_;
      }
    }
    return again;
  }

  const TopKBatch& batch_;
  const TopKKernels& kernels_;
  core::Lease& lease_;
  const int64_t rows_;
  const int64_t chunks_;
  const FirstPass first_;  // tried first on each row
  const size_t maxima_bytes_;
  uint8_t* const maxima_;
  uint8_t* const in_order_;  // [rows, chunks]
  FirstPass pass_[kMaxSplitRows] = {};
};

void RunNarrow(const TopKBatch& batch, const TopKExecution& plan, core::Lease& lease) {
  const auto element = static_cast<int64_t>(SizeOf(batch.x.dtype));
  const auto index = static_cast<int64_t>(SizeOf(batch.out.index_type));
  const NarrowRows rows{.x = static_cast<const uint8_t*>(batch.x.data),
                        .row_stride = batch.x.row_stride * element,
                        .dtype = batch.x.dtype,
                        .n = static_cast<size_t>(batch.x.cols),
                        .k = static_cast<size_t>(batch.width),
                        .largest = batch.options.largest,
                        .wide = batch.out.index_type == IndexType::kInt64,
                        .values = static_cast<uint8_t*>(batch.out.values),
                        .values_stride = batch.out.values_stride * element,
                        .indices = static_cast<uint8_t*>(batch.out.indices),
                        .indices_stride = batch.out.indices_stride * index};
  const TopKKernels& kernels = Kernels(batch.x.dtype);
  lease.ReserveScratch(NarrowScratch(rows.n));
  lease.Run(plan.tasks, [&](int64_t i, uint8_t* scratch) {
    const int64_t begin = i * plan.rows_per_task;
    const int64_t end = std::min(batch.x.rows, begin + plan.rows_per_task);
    kernels.narrow(rows, static_cast<size_t>(begin), static_cast<size_t>(end), scratch);
    for (int64_t row = begin; row < end && batch.options.ids.data != nullptr; ++row) {
      batch.MapIds(row, batch.width);
    }
  });
}

void RunRows(const TopKBatch& batch, const TopKExecution& plan, core::Lease& lease) {
  const TopKKernels& kernels = Kernels(batch.x.dtype);
  lease.Run(plan.tasks, [&](int64_t i, uint8_t* memory) {
    const int64_t end = std::min(batch.x.rows, (i + 1) * plan.rows_per_task);
    for (int64_t row = i * plan.rows_per_task; row < end; ++row) {
      const RowTask task = batch.Task(row);
      if (batch.HasWork(task)) {
        kernels.row(task, memory);
      }
      batch.FinishRow(row, task);
    }
  });
}

}  // namespace

void RunTopK(const TopKBatch& batch) {
  core::Lease lease(batch.options.pool);
  if (batch.options.algorithm == Algorithm::kLaneSort) {
    RunLaneSorts(batch, lease);
    return;
  }
  const TopKExecution plan = PlanExecution({.rows = batch.x.rows,
                                            .n = batch.x.cols,
                                            .k = batch.width,
                                            .dtype = batch.x.dtype,
                                            .uniform = batch.uniform(),
                                            .stats = batch.out.stats != nullptr,
                                            .narrow_lanes = Kernels(batch.x.dtype).narrow_lanes()},
                                           lease.threads());
  if (plan.way == TopKExecution::Way::kNarrow) {
    RunNarrow(batch, plan, lease);
    return;
  }
  const RowBytes bytes = BytesOfRows(batch);
  lease.ReserveScratch(bytes.scratch);
  if (plan.way == TopKExecution::Way::kSplit) {
    SplitRows(batch, lease, bytes.maxima).Run();
  } else {
    RunRows(batch, plan, lease);
  }
}

}  // namespace riffle::topk
