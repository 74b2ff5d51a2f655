// Exact top-k by lanes: column c belongs to lane c % lanes; a pass over the row keeps the m best of
// each lane, and a certificate tells whether the k best of the row are among them. If not, the next
// pass keeps more. After the JAX Pallas kernel of oliverdutton/fast_exact_topk_tpu.
//
// The certificate of a pass of depth m: at least k kept elements, the m-th of each lane not counted,
// are better than the pivot, the best of the m-th elements. All that is better than the pivot has
// been kept, so these hold the k best. It is found exactly when no lane has m of the k best.
#if defined(RIFFLE_TOPK_LANE_SORT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_LANE_SORT_INL_H_
#undef RIFFLE_TOPK_LANE_SORT_INL_H_
#else
#define RIFFLE_TOPK_LANE_SORT_INL_H_
#endif

#include <algorithm>

#include "topk/finish-inl.h"
#include "topk/lane_sort.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {

// One row on its lanes. keys [m, lanes] and columns [m, lanes] hold the best m of each lane, best
// first; what is empty has the least integer for a key, which is below the key of every element.
template <typename TI>
class LaneSorter {
  using D = Tag<TI>;
  using DI = hn::Repartition<int32_t, D>;
  static constexpr TI kEmpty = std::numeric_limits<TI>::min();

 public:
  LaneSorter(Row<TI>& row, const LaneOptions& options)
      : row_(row),
        lanes_(static_cast<size_t>(options.lanes)),
        keys_(row.candidates.keys),
        columns_(row.candidates.indices) {}

  // Leaves the k best, and perhaps some more, in row.candidates. Returns the depth.
  size_t Run(std::span<const int> schedule, size_t last_depth);

 private:
  // Keeps the best m of each lane of the row.
  void Pass(size_t m);
  template <bool kKeyed>
  void Stream(size_t begin, size_t end);
  void Visit(size_t column, hn::Vec<D> keys, size_t lane);
  void VisitEach(size_t column, hn::Vec<D> keys);
  void InsertOne(size_t lane, TI key, int32_t column);
  void RaiseFloor();

  // Whether the pass of depth m_ certifies; if so the candidates are what is above the pivot.
  bool Certify();

  Row<TI>& row_;
  const size_t lanes_;
  TI* const keys_;
  int32_t* const columns_;
  size_t m_ = 0;
  // Elements with this key and less are not among the k best, because k elements that come before
  // what is still to be read are above it; they need not be kept.
  TI floor_ = kEmpty;
};

// at[i] = above ? over[i] : enters ? fresh : at[i], for one vector of columns.
template <class DI, class M = hn::Mask<DI>, class V = hn::Vec<DI>>
HWY_INLINE void ShiftColumns(DI di, M above, M enters, V fresh, const int32_t* over, int32_t* at) {
  const V kept = hn::IfThenElse(enters, fresh, hn::LoadU(di, at));
  hn::StoreU(hn::IfThenElse(above, hn::LoadU(di, over), kept), di, at);
}

// Sinks a vector of elements into its lanes. An element goes below all that are not less than it,
// so of equal ones the lower column stays above; what is less moves down by one. Working from the
// bottom up no depth waits for another, and it ends at the depth that no element rises above.
template <typename TI>
HWY_INLINE void LaneSorter<TI>::Visit(size_t column, hn::Vec<D> keys, size_t lane) {
  const D d;
  const DI di;
  const size_t half = hn::Lanes(di);
  TI* key_at = keys_ + (m_ - 1) * lanes_ + lane;
  int32_t* column_at = columns_ + (m_ - 1) * lanes_ + lane;
  auto at = hn::LoadU(d, key_at);
  auto enters = hn::Gt(keys, hn::Max(at, hn::Set(d, floor_)));
  if (HWY_LIKELY(hn::AllFalse(d, enters))) {
    return;
  }
  keys = hn::IfThenElse(enters, keys, hn::Set(d, kEmpty));
  const auto fresh = hn::Iota(di, static_cast<int32_t>(column));
  for (size_t depth = m_ - 1;; --depth) {
    // At the top everything is below what enters, and there is nothing above to move down.
    const TI* key_over = depth == 0 ? key_at : key_at - lanes_;
    const int32_t* column_over = depth == 0 ? column_at : column_at - lanes_;
    const auto over = depth == 0 ? hn::Set(d, hwy::LimitsMax<TI>()) : hn::LoadU(d, key_over);
    const auto above = hn::Gt(keys, over);
    hn::StoreU(hn::Max(at, hn::Min(keys, over)), d, key_at);
    if constexpr (sizeof(TI) == 4) {
      ShiftColumns(di, above, enters, fresh, column_over, column_at);
    } else {
      const hn::Half<D> dh;
      const auto fresh_high = hn::Add(fresh, hn::Set(di, static_cast<int32_t>(half)));
      ShiftColumns(di, hn::PromoteMaskTo(di, dh, hn::LowerHalfOfMask(dh, above)),
                   hn::PromoteMaskTo(di, dh, hn::LowerHalfOfMask(dh, enters)), fresh, column_over,
                   column_at);
      ShiftColumns(di, hn::PromoteMaskTo(di, dh, hn::UpperHalfOfMask(dh, above)),
                   hn::PromoteMaskTo(di, dh, hn::UpperHalfOfMask(dh, enters)), fresh_high,
                   column_over + half, column_at + half);
    }
    if (depth == 0 || hn::AllFalse(d, above)) {
      return;
    }
    at = over;
    enters = above;
    key_at -= lanes_;
    column_at -= lanes_;
  }
}

template <typename TI>
HWY_INLINE void LaneSorter<TI>::InsertOne(size_t lane, TI key, int32_t column) {
  size_t slot = (m_ - 1) * lanes_ + lane;
  if (key <= std::max(keys_[slot], floor_)) {
    return;
  }
  for (; slot >= lanes_ && keys_[slot - lanes_] < key; slot -= lanes_) {
    keys_[slot] = keys_[slot - lanes_];
    columns_[slot] = columns_[slot - lanes_];
  }
  keys_[slot] = key;
  columns_[slot] = column;
}

// Lanes fewer than a vector has: one element after another.
template <typename TI>
void LaneSorter<TI>::VisitEach(size_t column, hn::Vec<D> keys) {
  const D d;
  HWY_ALIGN TI each[hn::MaxLanes(d)];
  hn::Store(keys, d, each);
  for (size_t i = 0; i < hn::Lanes(d); ++i) {
    InsertOne((column + i) & (lanes_ - 1), each[i], static_cast<int32_t>(column + i));
  }
}

// Visits the elements of [begin, end) that may be above the floor; begin is a multiple of the lanes
// and of a vector. With keys, or by raw bits, which are in order for a floor that is not negative
// but for negative NaNs: these are the largest unsigned integers.
template <typename TI>
template <bool kKeyed>
void LaneSorter<TI>::Stream(size_t begin, size_t end) {
  const D d;
  const hn::RebindToUnsigned<D> du;
  using TU = hn::TFromD<decltype(du)>;
  constexpr size_t kBlock = 8;  // vectors
  const size_t width = hn::Lanes(d);
  const TI* x = row_.x;
  const auto visit = [&](size_t i, hn::Vec<D> keys) HWY_ATTR {
    if (lanes_ >= width) {
      Visit(i, keys, i & (lanes_ - 1));
    } else if (!hn::AllFalse(d, hn::Gt(keys, hn::Set(d, floor_)))) {
      VisitEach(i, keys);
    }
  };
  size_t i = begin;
  for (; i + kBlock * width <= end; i += kBlock * width) {
    auto max = kKeyed ? hn::Set(d, kEmpty) : hn::Zero(d);
    auto umax = hn::Zero(du);
    for (size_t v = 0; v < kBlock; ++v) {
      const auto bits = hn::LoadU(d, x + i + v * width);
      max = hn::Max(max, kKeyed ? Keys(d, bits, row_.format) : bits);
      if constexpr (!kKeyed) {
        umax = hn::Max(umax, hn::BitCast(du, bits));
      }
    }
    auto hit = hn::Gt(max, hn::Set(d, floor_));
    if constexpr (!kKeyed) {
      const auto limit = hn::Set(du, static_cast<TU>(row_.format.minus_inf()));
      hit = hn::Or(hit, hn::RebindMask(d, hn::Gt(umax, limit)));
    }
    if (HWY_LIKELY(hn::AllFalse(d, hit))) {
      continue;
    }
    for (size_t v = 0; v < kBlock; ++v) {
      visit(i + v * width, Keys(d, hn::LoadU(d, x + i + v * width), row_.format));
    }
  }
  for (; i < end; i += width) {
    const size_t count = std::min(width, end - i);
    const auto bits = LoadPart(d, x + i, count);
    visit(i, hn::IfThenElse(hn::FirstN(d, count), Keys(d, bits, row_.format),
                            hn::Set(d, kEmpty)));
  }
}

// The k-th best of what has been kept is a bound for all that is still to come.
template <typename TI>
void LaneSorter<TI>::RaiseFloor() {
  const size_t kept = m_ * lanes_;
  Pad(D(), keys_, kept);
  const Bound<TI> bound = FindBound(keys_, kept, row_.k, row_.k + row_.k / 4,
                                    row_.format.lowest_key(), row_.format);
  if (bound.reached >= row_.k) {
    floor_ = bound.key;
  }
}

template <typename TI>
void LaneSorter<TI>::Pass(size_t m) {
  m_ = m;
  std::fill_n(keys_, m * lanes_, kEmpty);
  std::fill_n(columns_, m * lanes_, -1);
  const size_t step = std::max(lanes_, hn::Lanes(D()));
  size_t i = 0;
  // The first part is as long as it takes to keep k; then parts grow, and with them the time that a
  // new floor saves, while finding one costs the same.
  size_t part = std::max(row_.n / 64, 4 * row_.k);
  while (i < row_.n) {
    const size_t end = part >= row_.n - i ? row_.n : (i + part + step - 1) / step * step;
    if (floor_ >= 0) {
      Stream<false>(i, std::min(end, row_.n));
    } else {
      Stream<true>(i, std::min(end, row_.n));
    }
    i = end;
    part = 3 * i;
    if (i < row_.n) {
      RaiseFloor();
    }
  }
}

template <typename TI>
bool LaneSorter<TI>::Certify() {
  const size_t kept = (m_ - 1) * lanes_;
  if (kept == 0) {
    return false;
  }
  TI pivot = kEmpty;
  int32_t pivot_column = 0;
  for (size_t slot = kept; slot < kept + lanes_; ++slot) {
    if (keys_[slot] > pivot || (keys_[slot] == pivot && columns_[slot] < pivot_column)) {
      pivot = keys_[slot];
      pivot_column = columns_[slot];
    }
  }
  Candidates<TI>& candidates = row_.candidates;
  candidates.count = kept;
  Pad(D(), keys_, kept);  // over the m-th elements, which are not needed any more
  const TI above = std::max(static_cast<TI>(pivot + 1), row_.format.lowest_key());
  const Bound<TI> bound = FindBound(keys_, kept, row_.k, SortLimit(row_.k, row_.task.sorted), above,
                                    row_.format);
  if (bound.reached >= row_.k) {
    KeepGe(candidates, bound.key);
    return true;
  }
  // Only together with elements that equal the pivot in lower columns.
  size_t reached = CountGe(keys_, kept, above);
  for (size_t slot = 0; slot < kept; ++slot) {
    if (keys_[slot] == pivot) {
      const bool better = columns_[slot] < pivot_column;
      reached += better ? 1 : 0;
      keys_[slot] = better ? pivot : kEmpty;
    }
  }
  if (reached < row_.k) {
    return false;
  }
  KeepGe(candidates, pivot);
  return true;
}

template <typename TI>
size_t LaneSorter<TI>::Run(std::span<const int> schedule, size_t last_depth) {
  size_t m = 0;
  for (size_t step = 0;; ++step) {
    m = step < schedule.size() ? static_cast<size_t>(schedule[step]) : 2 * m;
    row_.examined += step == 0 ? 0 : row_.n;
    floor_ = kEmpty;
    Pass(std::min(m, last_depth));
    if (Certify()) {
      return m - 1;
    }
  }
}

// Puts candidates in ascending order of index, which is what the finish expects, into `sorted`.
template <typename TI>
void SortByIndex(const Candidates<TI>& candidates, Candidates<int32_t> by_index, uint64_t* pairs,
                 Candidates<TI>& sorted) {
  const size_t count = candidates.count;
  for (size_t i = 0; i < count; ++i) {
    by_index.keys[i] = -candidates.indices[i];
    by_index.indices[i] = static_cast<int32_t>(i);
  }
  by_index.count = count;
  int32_t ranked[kRankLimit];
  const int32_t* order = ranked;
  if (count <= kRankLimit) {
    Pad(Tag<int32_t>(), by_index.keys, count);
    RankSort(by_index, count, ranked);
  } else {
    RadixSort(by_index, pairs);
    order = by_index.indices;
  }
  for (size_t i = 0; i < count; ++i) {
    sorted.keys[i] = candidates.keys[order[i]];
    sorted.indices[i] = candidates.indices[order[i]];
  }
  sorted.count = count;
}

template <typename TI>
void LaneSort(const RowTask& task, const LaneOptions& options, Format<TI> format,
              uint8_t* scratch) {
  const LaneLayout layout = PlanLanes(task, options);
  Row<TI> row(task, format, layout.finish, scratch);
  LaneSorter<TI> sorter(row, options);
  const size_t depth = sorter.Run(options.schedule, static_cast<size_t>(layout.last_depth));
  const Candidates<int32_t> by_index{reinterpret_cast<int32_t*>(scratch + layout.index_keys),
                                     reinterpret_cast<int32_t*>(scratch + layout.positions), 0};
  Candidates<TI> sorted{reinterpret_cast<TI*>(scratch + layout.sorted_keys),
                        reinterpret_cast<int32_t*>(scratch + layout.sorted_indices), 0};
  SortByIndex(row.candidates, by_index, row.pairs, sorted);
  row.candidates = sorted;
  SelectFromCandidates(row);
  FillStats(row);
  if (task.stats != nullptr) {
    task.stats->depth = static_cast<int32_t>(depth);
  }
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
