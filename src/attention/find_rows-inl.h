// Pointers to the rows of a block. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_FIND_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_FIND_ROWS_INL_H_
#undef RIFFLE_ATTENTION_FIND_ROWS_INL_H_
#else
#define RIFFLE_ATTENTION_FIND_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/kv_rows.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 16 rows of a KV head of a sequence, from position `begin` on; those outside `seen` are zeros.
struct RowsAt {
  int seq;
  int head;
  int begin;
  KeyRange seen;
};

// *rows = the rows of a run, eight pointers at a time: chains of additions and single stores were a
// fifth of a decode over Q4_0. Pre: run.data is not null.
HWY_INLINE void FillRows(const RowRun& run, KvRows* rows) {
#if HWY_CAP_GE512
  static_assert(sizeof(rows->row) == 2 * 64);
  const hn::FixedTag<uint64_t, 8> d;
  const auto stride = hn::Set(d, static_cast<uint64_t>(run.stride));
  const auto low =
      hn::Add(hn::Set(d, reinterpret_cast<uint64_t>(run.data)), hn::Mul(hn::Iota(d, 0), stride));
  uint64_t* const to = reinterpret_cast<uint64_t*>(rows->row);
  hn::StoreU(low, d, to);
  hn::StoreU(hn::Add(low, hn::ShiftLeft<3>(stride)), d, to + 8);
#else
  const uint8_t* data = run.data;
  for (const uint8_t*& row : rows->row) {
    row = data;
    data += run.stride;
  }
#endif
}

HWY_INLINE void FindRowsSimd(const AttentionArgs& args, const KvBytes& kv, const RowsAt& at,
                             KvRows* rows) {
  const RowRun run = FindRun(args, kv, at.seq, at.head, at.begin, at.seen);
  if (run.data != nullptr) {
    FillRows(run, rows);
  } else {
    FindRows(args, kv, at.seq, at.head, at.begin, at.seen, rows);
  }
}

// The rows of the cursor's tile, for kernels that prefetch them while they run.
inline void FindTileRows(const AttentionArgs& args, const TileCursor& cursor, TileRows* rows) {
  // Past the last tile: zero rows.
  const bool done = cursor.done();
  RowsAt at{done ? 0 : cursor.item().seq, cursor.head(), cursor.block(),
            done ? KeyRange{0, 0} : cursor.keys()};
  for (int group = 0; group < kGroupsPerBlock; ++group, at.begin += kGroupKeys) {
    FindRowsSimd(args, args.keys, at, &rows->keys[group]);
    if (args.values_in_keys) {  // they come with their keys
      rows->values[group] = ZeroRows();
    } else {
      FindRowsSimd(args, args.values, at, &rows->values[group]);
    }
    cursor.PrefetchScales(group);
  }
}

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
