// The entry points of the linear layer: they check the arguments, then choose the way.
#include "riffle/linear_topk.h"

#include <algorithm>

#include "core/entry_point.h"
#include "core/scratch_layout.h"
#include "core/targets.h"
#include "lm_head/choose_topk.h"
#include "lm_head/linear_call.h"
#include "lm_head/linear_check.h"
#include "lm_head/plain_topk.h"
#include "lm_head/prefilter/prefilter_topk.h"

namespace riffle {
namespace lm_head {
namespace {

bool UsesPrefilter(PrefilterMode mode, const LinearArgs& args, int64_t rows, int64_t k) {
  switch (mode) {
    case PrefilterMode::kAuto:
      return rows >= GetPrefilterKernels().min_rows && PrefilterPays(k, args);
    case PrefilterMode::kNever:
      return false;
    case PrefilterMode::kAlways:
      break;
  }
  return CanPrefilter(args);
}

void RunPlain(LinearCall& call, const PlainTopK& plain, const LinearTopKOut& out,
              core::Lease& lease) {
  uint8_t* shared = lease.Shared(plain.shared_bytes());
  lease.ReserveScratch(plain.scratch_bytes());
  plain.Run(call, nullptr, call.rows(), out, shared, lease);
}

// Runs the prefilter, then the plain way for the rows that fell back.
PrefilterStats RunPrefiltered(LinearCall& call, const PlainTopK& plain, int64_t k,
                              const LinearTopKOut& out, core::Lease& lease) {
  const PrefilterTopK prefilter(call, k, lease.threads());
  core::ScratchLayout layout;
  const auto row_list = layout.Place<int32_t>(call.rows());
  const auto memory =
      layout.Place<uint8_t>(std::max(plain.shared_bytes(), prefilter.shared_bytes()));
  uint8_t* shared = lease.Shared(layout.bytes());
  lease.ReserveScratch(std::max(plain.scratch_bytes(), prefilter.scratch_bytes()));
  int32_t* fell_back = row_list.At(shared);
  const PrefilterStats stats = prefilter.Run(call, out, memory.At(shared), lease, fell_back);
  if (stats.fell_back > 0) {
    plain.Run(call, fell_back, stats.fell_back, out, memory.At(shared), lease);
  }
  return stats;
}

}  // namespace

void LinearTopKWith(PrefilterMode mode, const MatrixView& x, const WeightView& weight, int64_t k,
                    const LinearTopKOut& out, const LinearOptions& options, PrefilterStats* stats) {
  CheckLinearTopK(x, weight, k, out, options);
  core::EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  LinearCall call(x, weight, options);
  core::Lease lease(options.pool);
  const PlainTopK plain(call, x.rows, k, lease.threads());
  if (!UsesPrefilter(mode, call.args(), x.rows, k)) {
    return RunPlain(call, plain, out, lease);
  }
  const PrefilterStats counts = RunPrefiltered(call, plain, k, out, lease);
  if (stats != nullptr) {
    *stats = counts;
  }
}

}  // namespace lm_head

void Linear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
            const LinearOptions& options) try {
  const core::EntryPoint entry;
  lm_head::CheckLinear(x, weight, y, options);
  core::EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  lm_head::LinearCall call(x, weight, options);
  core::Lease lease(options.pool);
  lm_head::RunLinear(call, y, lease);
} catch (...) {
  core::RethrowAsError();
}

void LinearTopK(const MatrixView& x, const WeightView& weight, int64_t k, const LinearTopKOut& out,
                const LinearOptions& options) try {
  const core::EntryPoint entry;
  lm_head::LinearTopKWith(lm_head::PrefilterMode::kAuto, x, weight, k, out, options, nullptr);
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
