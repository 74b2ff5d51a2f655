#include "lm_head/plain_topk.h"

#include <algorithm>
#include <new>

#include "core/order.h"
#include "lm_head/topk_out.h"

namespace riffle::lm_head {

PlainTopK::PlainTopK(const LinearCall& call, int64_t rows, int64_t k, int threads)
    : kernels_(GetPlainTopKKernels()),
      rows_(rows),
      chunks_(PlanChunks(call.args().vocab, threads)) {
  task_.plan = PlanCandidates(rows, k, chunks_);
  task_.tile = PlanTileScratch(task_.plan.rows);
  task_.lists = PlanLists(task_.plan, task_.tile.bytes);
  task_.k = k;
  finish_.layout = PlanSort(chunks_.chunks * task_.plan.limit, 0);
  finish_.chunks = chunks_.chunks;
  finish_.limit = task_.plan.limit;
  finish_.k = k;
  kept_ = PlanKept(task_.plan, chunks_.chunks, call.PackedXBytes(task_.plan.rows));
}

size_t PlainTopK::scratch_bytes() const {
  return std::max(task_.lists.bytes, finish_.layout.bytes);
}

KeptLists PlainTopK::PlaceKept(int64_t rows, uint8_t* shared) const {
  KeptLists lists;
  lists.counts = kept_.counts.At(shared);
  lists.keys = kept_.keys.At(shared);
  lists.columns = kept_.columns.At(shared);
  lists.bounds = kept_.bounds.At(shared);
  for (int64_t row = 0; row < rows; ++row) {
    new (lists.bounds + row) std::atomic<int32_t>(core::kF32Format.lowest_key());
  }
  return lists;
}

void PlainTopK::Run(LinearCall& call, const int32_t* row_list, int64_t rows,
                    const LinearTopKOut& out, uint8_t* shared, core::Lease& lease) const {
  HWY_DASSERT(rows <= rows_);
  const int64_t pass = task_.plan.rows;
  for (int64_t begin = 0; begin < rows; begin += pass) {
    const int64_t here = std::min(pass, rows - begin);
    const LinearArgs& args = call.PackRows(row_list, begin, here, shared, lease);
    const KeptLists kept = PlaceKept(here, shared);
    lease.Run(chunks_.chunks, [&](int64_t chunk, uint8_t* scratch) {
      ChunkTask task = task_;
      task.kept = kept;
      task.chunk = chunk;
      kernels_.search_tiles(args, chunks_.Begin(chunk), chunks_.End(chunk), task, scratch);
    });
    lease.Run(here, [&](int64_t r, uint8_t* scratch) {
      const int64_t row = row_list != nullptr ? row_list[begin + r] : begin + r;
      FinishTask task = finish_;
      task.kept = kept;
      task.rows = here;
      task.row = r;
      task.values = out.values + row * out.values_stride;
      task.indices = ColumnsOf(out, row, finish_.k);
      kernels_.finish_row(task, scratch);
      WidenColumns(out, row, finish_.k);
    });
  }
}

}  // namespace riffle::lm_head
