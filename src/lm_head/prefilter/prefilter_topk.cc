#include "lm_head/prefilter/prefilter_topk.h"

#include <algorithm>
#include <new>

#include "core/order.h"
#include "lm_head/topk_out.h"

namespace riffle::lm_head {
namespace {

std::atomic<int32_t>* MakeAtomics(std::atomic<int32_t>* at, int64_t count, int32_t value) {
  for (int64_t i = 0; i < count; ++i) {
    new (at + i) std::atomic<int32_t>(value);
  }
  return at;
}

}  // namespace

PrefilterTopK::PrefilterTopK(const LinearCall& call, int64_t k, int threads)
    : kernels_(GetPrefilterKernels()),
      k_(k),
      chunks_(PlanChunks(call.args().vocab, threads)),
      plan_(PlanPrefilter(call.rows(), k)),
      scratch_(PlanPrefilterScratch(plan_)),
      shared_(PlanPrefilterShared(plan_, call.args().d, call.PackedXBytes(plan_.rows))),
      finish_(PlanPrefilterFinish(plan_)) {
  HWY_DASSERT(CanPrefilter(call.args()));
}

size_t PrefilterTopK::scratch_bytes() const { return std::max(scratch_.bytes, finish_.bytes); }

PrefilterStats PrefilterTopK::Run(LinearCall& call, const LinearTopKOut& out, uint8_t* shared,
                                  core::Lease& lease, int32_t* fell_back) const {
  PrefilterStats stats;
  for (int64_t begin = 0; begin < call.rows(); begin += plan_.rows) {
    const int64_t rows = std::min(plan_.rows, call.rows() - begin);
    PrefilterArgs args;
    args.linear = call.PackRows(nullptr, begin, rows, shared, lease);
    const SharedCandidates candidates = PlaceShared(shared, rows, args);
    Quantize(args, candidates, lease);
    lease.Run(chunks_.chunks, [&](int64_t chunk, uint8_t* scratch) {
      const PrefilterChunk task{plan_, scratch_, candidates, k_, chunk};
      kernels_.search_tiles(args, chunks_.Begin(chunk), chunks_.End(chunk), task, scratch);
    });
    stats.multiplied += FinishRows(args, candidates, begin, out, lease);
    for (int64_t row = 0; row < rows; ++row) {
      if (candidates.FellBack(row)) {
        fell_back[stats.fell_back++] = static_cast<int32_t>(begin + row);
      } else {
        ++stats.prefiltered;
      }
    }
  }
  return stats;
}

SharedCandidates PrefilterTopK::PlaceShared(uint8_t* shared, int64_t rows,
                                            PrefilterArgs& args) const {
  args.x = shared_.x.At(shared);
  args.inplace = shared_.inplace.At(shared);
  args.errors = shared_.errors.At(shared);
  SharedCandidates candidates;
  candidates.bounds = MakeAtomics(shared_.bounds.At(shared), rows, core::kF32Format.lowest_key());
  candidates.locks = MakeAtomics(shared_.locks.At(shared), rows, 0);
  candidates.fell_back = MakeAtomics(shared_.fell_back.At(shared), rows, 0);
  candidates.remaining = MakeAtomics(shared_.remaining.At(shared), 1, static_cast<int32_t>(rows));
  candidates.counts = shared_.counts.At(shared);
  std::fill_n(candidates.counts, rows, 0);
  candidates.lowers = shared_.lowers.At(shared);
  candidates.uppers = shared_.uppers.At(shared);
  candidates.columns = shared_.columns.At(shared);
  candidates.stride = shared_.stride;
  return candidates;
}

void PrefilterTopK::Quantize(const PrefilterArgs& args, const SharedCandidates& candidates,
                             core::Lease& lease) const {
  const auto quantize = [&](int64_t row) {
    if (!kernels_.quantize_row(args, row)) {
      candidates.FallBack(row);
    }
  };
  // Quantising 32 Ki inputs takes as long as waking the threads.
  if (args.linear.rows * args.linear.d > (1 << 15)) {
    lease.Run(args.linear.rows, [&](int64_t row, uint8_t*) { quantize(row); });
  } else {
    for (int64_t row = 0; row < args.linear.rows; ++row) {
      quantize(row);
    }
  }
}

int64_t PrefilterTopK::FinishRows(const PrefilterArgs& args, const SharedCandidates& candidates,
                                  int64_t begin, const LinearTopKOut& out,
                                  core::Lease& lease) const {
  std::atomic<int64_t> multiplied{0};
  lease.Run(args.linear.rows, [&](int64_t row, uint8_t* scratch) {
    if (candidates.FellBack(row)) {
      return;
    }
    PrefilteredRow task;
    task.shared = candidates;
    task.layout = finish_;
    task.row = row;
    task.k = k_;
    task.values = out.values + (begin + row) * out.values_stride;
    task.indices = ColumnsOf(out, begin + row, k_);
    multiplied += kernels_.finish_row(args.linear, task, scratch);
    WidenColumns(out, begin + row, k_);
  });
  return multiplied;
}

}  // namespace riffle::lm_head
