// What a thread needs while it runs work items. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_WORK_ITEM_SCRATCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_WORK_ITEM_SCRATCH_INL_H_
#undef RIFFLE_ATTENTION_WORK_ITEM_SCRATCH_INL_H_
#else
#define RIFFLE_ATTENTION_WORK_ITEM_SCRATCH_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/dot-inl.h"
#include "attention/few_keys_rows.h"
#include "attention/kv_rows.h"
#include "attention/kv_source-inl.h"
#include "attention/work_item_state-inl.h"
#include "core/scratch_layout.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// Operands from a row of values to the next: rows of a power of two would share few L1 sets.
constexpr int ValueStride(int columns) { return columns + 16; }

// Arrays for the largest work item of a plan; `lanes` are those of the work item or of the tile in
// hand, `columns` those of a row's sums.
template <class Math>
struct WorkItemScratch {
  using Operand = typename Math::Operand;

  Operand* keys;        // [kBlock][KeyStride], or [keys][operands][lanes] of FewKeys
  Operand* values;      // [kBlock / kPerOperand][ValueStride]
  Operand* decoded;     // [kGroupKeys][columns / kPerOperand]: values before they are packed
  float* key_scales;    // [groups][kBlock], as KvSource has them
  float* value_scales;  // [groups][kBlock]
  Operand* p;           // [kBlock / kPerOperand][lanes]: probabilities
  float* scores;        // [kBlock][lanes]
  float* group_scores;  // [kBlock][lanes]: scores of a group of a row's elements; then weights
  float* bias;          // [kBlock][lanes]: what is added to logits, if anything is
  float* correction;    // [lanes]: what a block multiplies earlier sums with
  int32_t* first;       // [lanes]: the keys [first, last) that a row sees
  int32_t* last;        // [lanes]
  Operand* q;           // [heads][tiles][operands][lanes]
  uint8_t* has_sums;    // [heads][lanes]: at a tile's first lane, whether its sums hold anything
  WorkItemState split;  // of the KV split in hand
  WorkItemState total;  // of the KV splits before it

  // Places the arrays in `scratch`, aligned to kScratchAlignment. Returns the bytes they take. With
  // a null `scratch` it only counts these.
  size_t Place(const AttentionArgs& args, const Plan& plan, uint8_t* scratch) {
    core::ScratchLayout layout;
    const auto take = [&]<typename T>(T*& pointer, int64_t count) {
      const core::ScratchArray<T> array = layout.Place<T>(count);
      pointer = scratch != nullptr ? array.At(scratch) : nullptr;
    };
    const int columns = PaddedDim(args.values.dim);
    take(keys, kBlock * KeyStride<Math>(args.keys.dim));
    take(values, kBlock / Math::kPerOperand * ValueStride(columns));
    take(decoded, kGroupKeys * columns / Math::kPerOperand);
    take(key_scales, KvSource<Math>::ScaleFloats(args.keys));
    take(value_scales, KvSource<Math>::ScaleFloats(args.values));
    take(p, kBlock / Math::kPerOperand * kTileRows);
    take(scores, kBlock * kTileRows);
    take(group_scores, kBlock * kTileRows);
    take(bias, args.biased() ? kBlock * kTileRows : 0);
    take(correction, kTileRows);
    const int lanes = std::max(plan.max_head_lanes, kFewKeysLanes);
    take(first, lanes);
    take(last, lanes);
    take(q, int64_t{lanes} * (args.keys.dim / Math::kPerOperand));
    take(has_sums, args.mask.data != nullptr ? plan.max_head_lanes : 0);
    for (WorkItemState* state : {&split, &total}) {
      take(state->max, plan.max_head_lanes);
      take(state->weight, plan.max_head_lanes);
      take(state->sums, int64_t{plan.max_head_rows} * columns);
    }
    return layout.bytes();
  }
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
