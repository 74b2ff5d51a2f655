// The softmax states of a work item's rows: in hand, merged, and in partial_states. Included once
// per SIMD target.
#if defined(RIFFLE_ATTENTION_WORK_ITEM_STATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_WORK_ITEM_STATE_INL_H_
#undef RIFFLE_ATTENTION_WORK_ITEM_STATE_INL_H_
#else
#define RIFFLE_ATTENTION_WORK_ITEM_STATE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention/attention_kernels.h"
#include "attention/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// What a work item has: heads, rows of each, lanes that these fill, columns of a row's sums.
struct WorkItemShape {
  int heads = 0;
  int rows = 0;
  int lanes = 0;
  int columns = 0;

  // f(head, row, lane of both, offset of the row's sums)
  template <typename F>
  void ForEach(const F& f) const {
    for (int head = 0; head < heads; ++head) {
      for (int row = 0; row < rows; ++row) {
        f(head, row, head * lanes + row, (int64_t{head} * rows + row) * columns);
      }
    }
  }
};

struct WorkItemState {
  float* max;     // [heads][lanes]
  float* weight;  // [heads][lanes]
  float* sums;    // [heads][rows][columns]

  // Rows begin empty. Their sums are whatever was there until their first keys write them.
  void Clear(const WorkItemShape& item) const {
    std::fill_n(max, item.heads * item.lanes, -std::numeric_limits<float>::infinity());
    std::fill_n(weight, item.heads * item.lanes, 0.0f);
  }
  bool IsEmpty(int lane) const {
    return weight[lane] == 0.0f && max[lane] == -std::numeric_limits<float>::infinity();
  }
};

// Merges the state of later keys into `total`.
inline void MergePartialState(const WorkItemShape& item, const WorkItemState& later,
                              const WorkItemState& total) {
  item.ForEach([&](int, int, int lane, int64_t sums) {
    if (!later.IsEmpty(lane)) {  // an empty state would change no bit
      MergeState(later.max[lane], later.weight[lane], later.sums + sums, item.columns,
                 total.max + lane, total.weight + lane, total.sums + sums);
    }
  });
}

// A partial state in memory, in the floats of PartialStateFloats.
struct PartialStateView {
  PartialStateView(float* state, int heads, int rows, int columns)
      : sums(state), max(state + int64_t{heads} * rows * columns), weight(max + heads * rows) {}
  float* sums;    // [heads][rows][columns]
  float* max;     // [heads][rows]
  float* weight;  // [heads][rows]
};

inline void StoreState(const WorkItemShape& item, const WorkItemState& state, float* to) {
  const PartialStateView view(to, item.heads, item.rows, item.columns);
  item.ForEach([&](int head, int row, int lane, int64_t sums) {
    if (state.IsEmpty(lane)) {
      std::fill_n(view.sums + sums, item.columns, 0.0f);
    } else {
      std::copy_n(state.sums + sums, item.columns, view.sums + sums);
    }
    view.max[head * item.rows + row] = state.max[lane];
    view.weight[head * item.rows + row] = state.weight[lane];
  });
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
