// The entry points of the linear layer: check, then choose the way.
#include "riffle/linear_topk.h"

#include <algorithm>

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

bool UsesPrefilter(lm_head::PrefilterMode mode, const lm_head::LinearArgs& args, int64_t k) {
  switch (mode) {
    case lm_head::PrefilterMode::kAuto:
      return lm_head::GetPrefilterKernels().native && lm_head::PrefilterPays(k, args);
    case lm_head::PrefilterMode::kNever:
      return false;
    case lm_head::PrefilterMode::kAlways:
      break;
  }
  return lm_head::CanPrefilter(args);
}

void RunPlain(lm_head::LinearCall& call, const lm_head::PlainTopK& plain, const LinearTopKOut& out,
              core::Lease& lease) {
  uint8_t* shared = lease.Shared(plain.shared_bytes());
  lease.ReserveScratch(plain.scratch_bytes());
  plain.Run(call, nullptr, call.rows(), out, shared, lease);
}

// The prefilter, then the plain way for the rows that fell back.
lm_head::PrefilterStats RunPrefiltered(lm_head::LinearCall& call, const lm_head::PlainTopK& plain,
                                       int64_t k, const LinearTopKOut& out, core::Lease& lease) {
  const lm_head::PrefilterTopK prefilter(call, k, lease.threads());
  core::ScratchLayout layout;
  const auto row_list = layout.Place<int32_t>(call.rows());
  const auto memory =
      layout.Place<uint8_t>(std::max(plain.shared_bytes(), prefilter.shared_bytes()));
  uint8_t* shared = lease.Shared(layout.bytes());
  lease.ReserveScratch(std::max(plain.scratch_bytes(), prefilter.scratch_bytes()));
  int32_t* fell_back = row_list.At(shared);
  const lm_head::PrefilterStats stats =
      prefilter.Run(call, out, memory.At(shared), lease, fell_back);
  if (stats.fell_back > 0) {
    plain.Run(call, fell_back, stats.fell_back, out, memory.At(shared), lease);
  }
  return stats;
}

}  // namespace

void lm_head::LinearTopKWith(lm_head::PrefilterMode mode, const MatrixView& x,
                             const WeightView& weight, int64_t k, const LinearTopKOut& out,
                             const LinearOptions& options, lm_head::PrefilterStats* stats) {
  lm_head::CheckLinearTopK(x, weight, k, out, options);
  core::EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  lm_head::LinearCall call(x, weight, options);
  core::Lease lease(options.pool);
  const lm_head::PlainTopK plain(call, x.rows, k, lease.threads());
  if (!UsesPrefilter(mode, call.args(), k)) {
    return RunPlain(call, plain, out, lease);
  }
  const lm_head::PrefilterStats counts = RunPrefiltered(call, plain, k, out, lease);
  if (stats != nullptr) {
    *stats = counts;
  }
}

}  // namespace lm_head

void Linear(const MatrixView& x, const WeightView& weight, const OutView<float>& y,
            const LinearOptions& options) {
  lm_head::CheckLinear(x, weight, y, options);
  core::EnsureTarget();
  if (x.rows == 0) {
    return;
  }
  lm_head::LinearCall call(x, weight, options);
  core::Lease lease(options.pool);
  lm_head::RunLinear(call, y, lease);
}

void LinearTopK(const MatrixView& x, const WeightView& weight, int64_t k, const LinearTopKOut& out,
                const LinearOptions& options) {
  lm_head::LinearTopKWith(lm_head::PrefilterMode::kAuto, x, weight, k, out, options, nullptr);
}

}  // namespace riffle
