// The kernels of attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/attention_args.h"

namespace riffle::attention {

// Runs work items [begin, end). `partial_states` has room for the plan's partial states
// (PartialStateFloats), `scratch` the bytes of AttentionKernels::scratch_bytes.
using RunItemsKernel = void (*)(const AttentionArgs& args, const Plan& plan, const WorkItem* begin,
                                const WorkItem* end, float* partial_states, uint8_t* scratch);

struct AttentionKernels {
  // Bytes of a thread's scratch for the work items of a plan.
  size_t (*scratch_bytes)(const AttentionArgs& args, const Plan& plan);

  // Runs work items by fused multiply-adds in f32.
  RunItemsKernel run_items;

  // Merges the partial states of one KV head of a divided item, in their order, into the first one,
  // and writes the results. `head` counts from the item's first head.
  void (*merge_divided_item)(const AttentionArgs& args, const DividedItem& divided, int head,
                             float* partial_states);

  // Reads the tiles of work items [begin, end) in the kernels' order and returns the largest byte.
  uint8_t (*read_items)(const AttentionArgs& args, const WorkItem* begin, const WorkItem* end);

  // Stores a row [dim] of `dtype` in `out`: the sum of weights[i] * rows[i] for i < n, in order.
  // Rows of weight 0 are not read.
  void (*sum_weighted)(DType dtype, const uint8_t* const* rows, const float* weights, int64_t n,
                       int dim, uint8_t* out);

  // Runs `steps` steps of dot products on registers. Returns their floating-point operations.
  double (*run_dots)(DType dtype, int64_t steps);
};

// Kernels for the target in use.
const AttentionKernels& GetAttentionKernels();

// The kernel that runs work items by dot products of bf16 pairs; null if the target has none for
// keys and values of these codes, which must be exact in bf16. Pre of the kernel: q is bf16 or may
// be rounded to it.
RunItemsKernel GetBF16RunItems(RowCode keys, RowCode values);

// GetBF16RunItems if q is bf16 or may be rounded to it and there is one, else run_items.
RunItemsKernel ChooseRunItems(const AttentionArgs& args);

}  // namespace riffle::attention
