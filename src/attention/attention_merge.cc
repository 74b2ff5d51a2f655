// Merging results over disjoint parts of the keys.
#include <cmath>

#include "attention/attention_check.h"
#include "attention/attention_kernels.h"
#include "core/entry_point.h"
#include "core/lease.h"
#include "core/scratch_layout.h"
#include "core/targets.h"
#include "riffle/attention.h"

namespace riffle {

void MergeStates(std::span<const AttentionPart> parts, const AttentionOut& out,
                 const CallOptions& options) try {
  const core::EntryPoint entry;
  attention::CheckMerge(parts, out);
  core::EnsureTarget();
  const HeadsView& shape = parts.front().out;
  const auto element = static_cast<int64_t>(SizeOf(shape.dtype));
  const size_t n = parts.size();
  const attention::AttentionKernels& kernels = attention::GetAttentionKernels();
  core::ScratchLayout layout;
  const auto row_pointers = layout.Place<const uint8_t*>(static_cast<int64_t>(n));
  const auto row_weights = layout.Place<float>(static_cast<int64_t>(n));
  core::Lease lease(options.pool);
  lease.ReserveScratch(layout.bytes());
  lease.Run(shape.tokens, [&](int64_t token, uint8_t* scratch) {
    const uint8_t** const rows = row_pointers.At(scratch);
    float* const weights = row_weights.At(scratch);
    for (int64_t head = 0; head < shape.heads; ++head) {
      float largest = -INFINITY;
      for (size_t i = 0; i < n; ++i) {
        weights[i] = parts[i].lse[token * parts[i].lse_token_stride + head];
        weights[i] = weights[i] == INFINITY ? -INFINITY : weights[i];  // both mean: empty
        rows[i] = static_cast<const uint8_t*>(parts[i].out.data) +
                  (token * parts[i].out.token_stride + head * parts[i].out.head_stride) * element;
        largest = weights[i] > largest || std::isnan(weights[i]) ? weights[i] : largest;
      }
      double sum = 0;
      for (size_t i = 0; i < n && largest > -INFINITY; ++i) {
        sum += std::exp(static_cast<double>(weights[i]) - largest);
      }
      for (size_t i = 0; i < n; ++i) {
        // NaN stays NaN; a part that saw nothing weighs 0.
        weights[i] =
            weights[i] == -INFINITY
                ? 0.0f
                : static_cast<float>(std::exp(weights[i] - static_cast<double>(largest)) / sum);
      }
      kernels.sum_weighted(shape.dtype, rows, weights, static_cast<int64_t>(n),
                           static_cast<int>(shape.head_dim),
                           static_cast<uint8_t*>(out.data) +
                               (token * out.token_stride + head * out.head_stride) * element);
      if (out.lse != nullptr) {
        out.lse[token * out.lse_token_stride + head] =
            sum == 0 ? largest : static_cast<float>(largest + std::log(sum));
      }
    }
  });
} catch (...) {
  core::RethrowAsError();
}

}  // namespace riffle
