#include "attention/attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/attention_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include "attention/results-inl.h"
#include "attention/roofline-inl.h"
#include "attention/work_item_runner-inl.h"
#include "core/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

template <class Math>
void RunItemsIn(const AttentionArgs& args, const Plan& plan, const WorkItem* begin,
                const WorkItem* end, float* partial_states, uint8_t* scratch) {
  WorkItemRunner<Math> runner(args, plan, scratch);
  TileCursor ahead(args, begin, end);
  for (int i = TilesAhead(args); i > 0; --i) {
    for (int part = 0; part < 2 * kGroups; ++part) {
      ahead.Prefetch(part);
    }
    ahead.Next();
  }
  for (const WorkItem* item = begin; item != end; ++item) {
    runner.Run(*item, partial_states, ahead);
  }
}

#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
// An f32 or f16 query is not rounded to bf16, nor is a key or a value.
bool TakesBF16(const AttentionArgs& args) {
  return args.q_dtype == DType::kBF16 && ExactInBF16(args.keys.code) &&
         ExactInBF16(args.values.code);
}
#endif

void RunItems(const AttentionArgs& args, const Plan& plan, const WorkItem* begin,
              const WorkItem* end, float* partial_states, uint8_t* scratch) {
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
  if (TakesBF16(args)) {
    return RunItemsIn<BF16Math>(args, plan, begin, end, partial_states, scratch);
  }
#endif
  RunItemsIn<F32Math>(args, plan, begin, end, partial_states, scratch);
}

// No arithmetic needs more than f32's.
size_t CountScratch(const AttentionArgs& args, const Plan& plan) {
  return WorkItemScratch<F32Math>().Place(args, plan, nullptr);
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::attention {
HWY_EXPORT(RunItems);
HWY_EXPORT(CountScratch);
HWY_EXPORT(MergeSplitStates);
HWY_EXPORT(ReadItems);
HWY_EXPORT(SumWeighted);
HWY_EXPORT(SpinOn);

size_t AttentionScratchBytes(const AttentionArgs& args, const Plan& plan) {
  return core::ForTarget(HWY_DISPATCH_TABLE(CountScratch))(args, plan);
}

void RunWorkItems(const AttentionArgs& args, const Plan& plan, const WorkItem* begin,
                  const WorkItem* end, float* partial_states, uint8_t* scratch) {
  core::ForTarget(HWY_DISPATCH_TABLE(RunItems))(args, plan, begin, end, partial_states, scratch);
}

void MergeSplit(const AttentionArgs& args, const KvSplit& split, int head, float* partial_states) {
  core::ForTarget(HWY_DISPATCH_TABLE(MergeSplitStates))(args, split, head, partial_states);
}

uint8_t ReadWorkItems(const AttentionArgs& args, const WorkItem* begin, const WorkItem* end) {
  return core::ForTarget(HWY_DISPATCH_TABLE(ReadItems))(args, begin, end);
}

void WeightedSum(DType dtype, const uint8_t* const* rows, const float* weights, int64_t n, int dim,
                 uint8_t* out) {
  core::ForTarget(HWY_DISPATCH_TABLE(SumWeighted))(dtype, rows, weights, n, dim, out);
}

double SpinDots(DType dtype, int64_t steps) {
  return core::ForTarget(HWY_DISPATCH_TABLE(SpinOn))(dtype, steps);
}

}  // namespace riffle::attention
#endif  // HWY_ONCE
