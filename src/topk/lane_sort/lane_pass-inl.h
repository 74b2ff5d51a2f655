// One pass of lane sort: the best m of each lane of a row.
#if defined(RIFFLE_TOPK_LANE_PASS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_LANE_PASS_INL_H_
#undef RIFFLE_TOPK_LANE_PASS_INL_H_
#else
#define RIFFLE_TOPK_LANE_PASS_INL_H_
#endif

#include <hwy/cache_control.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "topk/lane_sort/lane_sort.h"
#include "topk/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;
using core::HWY_NAMESPACE::Tag;

// The key of an empty place. It is below the key of every element.
template <typename TI>
constexpr TI kEmpty = std::numeric_limits<TI>::min();

// Keeps elements in row.candidates: keys [m, lanes] and columns [m, lanes], each lane best first.
template <typename TI>
class LanePass {
  using D = Tag<TI>;
  using DI = hn::Repartition<int32_t, D>;
  // The row is searched for elements above the floor in blocks of vectors. All blocks of a span are
  // searched before any element is inserted: a branch for each block would be mispredicted for most
  // blocks that have such an element, and nothing else could run until it was resolved.
  static constexpr size_t kBlock = 4;
  static constexpr size_t kSpan = 32;
  static constexpr size_t kFewBlocks = 16;
  static constexpr uintptr_t kAhead = 3072;  // bytes; with none or 1024 it is 10% slower
  // The first floor comes from a fourth of the row. A smaller part lets more elements through later
  // (an eighth: 6% slower); a larger one is read twice.
  static constexpr size_t kFirstPartDivisor = 4;

 public:
  LanePass(const Row<core::Format<TI>>& row, const LaneOptions& options, const LaneScratch& layout)
      : row_(row),
        lanes_(static_cast<size_t>(options.lanes)),
        last_depth_(static_cast<size_t>(layout.last_depth)),
        keys_(row.candidates.keys),
        columns_(row.candidates.indices) {}

  // Keeps the best m of each lane, among all elements that may be among the k best. m is at most
  // the layout's last depth.
  void Run(size_t m);

 private:
  // Run for x[begin, end), where begin is a multiple of the lanes and of a vector.
  template <bool kKeyed>
  void Insert(size_t begin, size_t end);
  template <bool kKeyed>
  uint32_t BlocksAboveFloor(size_t begin, size_t blocks) const;
  void InsertVector(size_t column);
  size_t FindColumns(size_t begin, int32_t* columns) const;
  void InsertColumns(const int32_t* columns, size_t count);

  template <bool kKeyed>
  bool FirstFloor();
  void RaiseFloor();

  const Row<core::Format<TI>>& row_;
  const size_t lanes_;
  const size_t last_depth_;
  TI* const keys_;
  int32_t* const columns_;
  size_t m_ = 0;
  // An element still to be read can be dropped unless its key exceeds the floor: k elements are
  // better.
  TI floor_ = kEmpty<TI>;
};

// For one vector of columns: at[i] = above ? over[i] : enters ? fresh : at[i].
template <class DI, class M = hn::Mask<DI>, class V = hn::Vec<DI>>
HWY_INLINE void ShiftColumns(DI di, M above, M enters, V fresh, const int32_t* over, int32_t* at) {
  const V kept = hn::IfThenElse(enters, fresh, hn::LoadU(di, at));
  hn::StoreU(hn::IfThenElse(above, hn::LoadU(di, over), kept), di, at);
}

// Inserts a vector of elements, each into its lane. An element goes below all that are not smaller,
// so among equal ones the lower column stays above; smaller ones move down by one. The loop runs
// from the bottom up: no step then depends on the result of another, and it ends at the depth above
// which no lane inserts its element.
template <typename TI>
HWY_INLINE void LanePass<TI>::InsertVector(size_t column) {
  const D d;
  const DI di;
  const size_t half = hn::Lanes(di);
  HWY_DASSERT(hn::Lanes(d) <= lanes_);
  const size_t bottom = (m_ - 1) * lanes_ + (column & (lanes_ - 1));
  TI* key_at = keys_ + bottom;
  int32_t* column_at = columns_ + bottom;
  auto at = hn::LoadU(d, key_at);
  auto keys = Keys(d, hn::LoadU(d, row_.x + column), row_.format);
  auto enters = hn::Gt(keys, hn::Max(at, hn::Set(d, floor_)));
  if (HWY_LIKELY(hn::AllFalse(d, enters))) {
    return;
  }
  keys = hn::IfThenElse(enters, keys, hn::Set(d, kEmpty<TI>));
  const auto fresh = hn::Iota(di, static_cast<int32_t>(column));
  for (size_t depth = m_ - 1;; --depth) {
    // At the top there is nothing above, and nothing moves down.
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

// Stores the columns of the block's elements above the floor. Returns their number. `columns` has
// room for one more vector.
template <typename TI>
HWY_INLINE size_t LanePass<TI>::FindColumns(size_t begin, int32_t* columns) const {
  const D d;
  const auto floor = hn::Set(d, floor_);
  size_t count = 0;
  for (size_t v = 0; v < kBlock; ++v) {
    const size_t i = begin + v * hn::Lanes(d);
    const auto mask = hn::Gt(Keys(d, hn::LoadU(d, row_.x + i), row_.format), floor);
    count += CompressIndices(d, mask, static_cast<int32_t>(i), columns + count);
  }
  return count;
}

// Inserts elements one by one.
template <typename TI>
void LanePass<TI>::InsertColumns(const int32_t* columns, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const auto column = static_cast<size_t>(columns[i]);
    const TI key = core::Key(row_.At(column), row_.format);
    size_t slot = (m_ - 1) * lanes_ + (column & (lanes_ - 1));
    if (key <= keys_[slot]) {
      continue;
    }
    for (; slot >= lanes_ && keys_[slot - lanes_] < key; slot -= lanes_) {
      keys_[slot] = keys_[slot - lanes_];
      columns_[slot] = columns_[slot - lanes_];
    }
    keys_[slot] = key;
    columns_[slot] = columns[i];
  }
}

// Which of the blocks from `begin` on may have elements above the floor, one bit each. Compares
// keys, or raw bits: above a floor that is not negative they are in the order of the values, except
// for negative NaNs, which are the largest unsigned integers.
template <typename TI>
template <bool kKeyed>
HWY_INLINE uint32_t LanePass<TI>::BlocksAboveFloor(size_t begin, size_t blocks) const {
  const D d;
  const hn::RebindToUnsigned<D> du;
  using TU = hn::TFromD<decltype(du)>;
  const size_t width = hn::Lanes(d);
  const auto floor = hn::Set(d, floor_);
  const auto minus_inf = hn::Set(du, static_cast<TU>(row_.format.minus_inf()));
  const TI* x = row_.x + begin;
  uint32_t hot = 0;
  for (size_t block = 0; block < blocks; ++block) {
    auto max = floor;
    auto unsigned_max = minus_inf;
    for (size_t v = 0; v < kBlock; ++v, x += width) {
      const auto bits = hn::LoadU(d, x);
      hwy::Prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(x) + kAhead));
      max = hn::Max(max, kKeyed ? Keys(d, bits, row_.format) : bits);
      if constexpr (!kKeyed) {
        unsigned_max = hn::Max(unsigned_max, hn::BitCast(du, bits));
      }
    }
    auto above = hn::Gt(max, floor);
    if constexpr (!kKeyed) {
      above = hn::Or(above, hn::RebindMask(d, hn::Gt(unsigned_max, minus_inf)));
    }
    hot |= static_cast<uint32_t>(!hn::AllFalse(d, above)) << block;
  }
  return hot;
}

template <typename TI>
template <bool kKeyed>
void LanePass<TI>::Insert(size_t begin, size_t end) {
  const D d;
  const size_t width = hn::Lanes(d);
  HWY_DASSERT(begin % lanes_ == 0 && begin % width == 0);
  const size_t block = kBlock * width;
  int32_t columns[kFewBlocks * kBlock * hn::MaxLanes(d) + select::kSlack];
  size_t i = begin;
  while (i + block <= end) {
    const size_t blocks = std::min(kSpan, (end - i) / block);
    uint32_t hot = BlocksAboveFloor<kKeyed>(i, blocks);
    if (lanes_ >= width && hwy::PopCount(hot) > kFewBlocks) {
      for (size_t v = 0; v < blocks * kBlock; ++v) {
        InsertVector(i + v * width);
      }
      hot = 0;
    }
    while (hot != 0) {
      size_t count = 0;
      for (size_t few = 0; few < kFewBlocks && hot != 0; ++few, hot &= hot - 1) {
        const size_t at = i + hwy::Num0BitsBelowLS1Bit_Nonzero32(hot) * block;
        count += FindColumns(at, columns + count);
      }
      InsertColumns(columns, count);
    }
    i += blocks * block;
  }
  for (; i < end; i += width) {
    const Loaded<TI> loaded = LoadRow(row_, i, end);
    const auto mask = hn::And(loaded.valid, hn::Gt(loaded.keys, hn::Set(d, floor_)));
    InsertColumns(columns, CompressIndices(d, mask, static_cast<int32_t>(i), columns));
  }
}

// Finds a floor before anything is kept. The row's first part is divided into more than k stripes,
// and the k-th largest of their maxima is a bound for the row. From raw bits, a bound that is found
// is valid, but in rows with few positive elements none may be found.
template <typename TI>
template <bool kKeyed>
bool LanePass<TI>::FirstFloor() {
  const D d;
  const size_t width = hn::Lanes(d);
  const size_t stripes = std::max<size_t>(std::bit_ceil(4 * row_.k), 4 * kMinBucket);
  const size_t steps = row_.n / kFirstPartDivisor / stripes;
  if (steps < 2 || stripes > last_depth_ * lanes_) {
    return true;  // the row is too short, or there are too few lanes
  }
  for (size_t stripe = 0; stripe < stripes; stripe += 4 * width) {
    const TI* x = row_.x + stripe;
    auto max0 = hn::Set(d, kEmpty<TI>);
    auto max1 = max0;
    auto max2 = max0;
    auto max3 = max0;
    const auto load = [&](size_t v) HWY_ATTR {
      const auto bits = hn::LoadU(d, x + v * width);
      return kKeyed ? Keys(d, bits, row_.format) : bits;
    };
    for (size_t step = 0; step < steps; ++step, x += stripes) {
      max0 = hn::Max(max0, load(0));
      max1 = hn::Max(max1, load(1));
      max2 = hn::Max(max2, load(2));
      max3 = hn::Max(max3, load(3));
    }
    hn::StoreU(max0, d, keys_ + stripe);
    hn::StoreU(max1, d, keys_ + stripe + width);
    hn::StoreU(max2, d, keys_ + stripe + 2 * width);
    hn::StoreU(max3, d, keys_ + stripe + 3 * width);
  }
  Pad(d, keys_, stripes);
  const Bound<TI> bound = FindBound(keys_, stripes, row_.k, row_.k + row_.k / 4,
                                    kKeyed ? row_.format.lowest_key() : TI{1}, row_.format);
  if (bound.num_reaching < row_.k) {
    return false;
  }
  floor_ = static_cast<TI>(bound.key - 1);  // elements equal to the bound must still be kept
  return true;
}

// The k-th best element kept is a bound for all elements still to be read.
template <typename TI>
void LanePass<TI>::RaiseFloor() {
  const size_t kept = m_ * lanes_;
  Pad(D(), keys_, kept);
  const Bound<TI> bound =
      FindBound(keys_, kept, row_.k, row_.k + row_.k / 4, row_.format.lowest_key(), row_.format);
  if (bound.num_reaching >= row_.k) {
    floor_ = std::max(floor_, bound.key);
  }
}

template <typename TI>
void LanePass<TI>::Run(size_t m) {
  HWY_DASSERT(1 <= m && m <= last_depth_);
  m_ = m;
  floor_ = kEmpty<TI>;
  if (row_.format.smallest || !FirstFloor<false>()) {
    FirstFloor<true>();
  }
  std::fill_n(keys_, m * lanes_, kEmpty<TI>);
  std::fill_n(columns_, m * lanes_, -1);
  // Each part is half as long as all that was read before it: the longer a part, the more it gains
  // from a higher floor.
  size_t begin = 0;
  while (begin < row_.n) {
    const size_t first =
        floor_ == kEmpty<TI> ? row_.n / 64 + 4 * row_.k : row_.n / kFirstPartDivisor;
    const size_t part = begin == 0 ? first : begin / 2;
    const size_t step = std::max(lanes_, hn::Lanes(D()));
    const size_t end = std::min(row_.n, (begin + part) / step * step + step);
    if (floor_ >= 0 && !row_.format.smallest) {
      Insert<false>(begin, end);
    } else {
      Insert<true>(begin, end);
    }
    begin = end;
    if (begin < row_.n) {
      RaiseFloor();
    }
  }
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
