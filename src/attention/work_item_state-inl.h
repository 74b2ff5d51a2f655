// The softmax states of a unit's rows: in hand, folded, and in slots. Included once per SIMD
// target.
#if defined(RIFFLE_ATTENTION_UNIT_STATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_UNIT_STATE_INL_H_
#undef RIFFLE_ATTENTION_UNIT_STATE_INL_H_
#else
#define RIFFLE_ATTENTION_UNIT_STATE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention/attention_kernels.h"
#include "attention/softmax-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {

// What a unit has: heads, rows of each, lanes that these fill, columns of a row's sums.
struct UnitShape {
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

struct UnitState {
  float* max;     // [heads][lanes]
  float* weight;  // [heads][lanes]
  float* sums;    // [heads][rows][columns]

  // Rows begin empty. Their sums are whatever was there until their first keys write them.
  void Clear(const UnitShape& unit) const {
    std::fill_n(max, unit.heads * unit.lanes, -std::numeric_limits<float>::infinity());
    std::fill_n(weight, unit.heads * unit.lanes, 0.0f);
  }
  bool IsEmpty(int lane) const {
    return weight[lane] == 0.0f && max[lane] == -std::numeric_limits<float>::infinity();
  }
};

// total = total and the keys after it.
inline void FoldState(const UnitShape& unit, const UnitState& later, const UnitState& total) {
  unit.ForEach([&](int, int, int lane, int64_t sums) {
    if (!later.IsEmpty(lane)) {  // it would change no bit
      MergeState(later.max[lane], later.weight[lane], later.sums + sums, unit.columns,
                 total.max + lane, total.weight + lane, total.sums + sums);
    }
  });
}

// A state in a slot (SlotFloats).
struct SlotView {
  SlotView(float* slot, int heads, int rows, int columns)
      : sums(slot), max(slot + int64_t{heads} * rows * columns), weight(max + heads * rows) {}
  float* sums;    // [heads][rows][columns]
  float* max;     // [heads][rows]
  float* weight;  // [heads][rows]
};

inline void StoreState(const UnitShape& unit, const UnitState& state, float* slot) {
  const SlotView view(slot, unit.heads, unit.rows, unit.columns);
  unit.ForEach([&](int head, int row, int lane, int64_t sums) {
    if (state.IsEmpty(lane)) {
      std::fill_n(view.sums + sums, unit.columns, 0.0f);
    } else {
      std::copy_n(state.sums + sums, unit.columns, view.sums + sums);
    }
    view.max[head * unit.rows + row] = state.max[lane];
    view.weight[head * unit.rows + row] = state.weight[lane];
  });
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
