// Many rows of few columns. A vector takes as many rows at once as it has lanes; lane r of every
// vector belongs to row r. An element becomes one integer: its key in the upper half, the
// complement of its column in the lower half. So maxima and minima alone sort the rows, equal
// values included (lower column first), and no row needs a branch.
#if defined(RIFFLE_TOPK_NARROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_TOPK_NARROW_INL_H_
#undef RIFFLE_TOPK_NARROW_INL_H_
#else
#define RIFFLE_TOPK_NARROW_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/order-inl.h"
#include "core/scratch_layout.h"
#include "topk/topk_args.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::topk::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;
using core::HWY_NAMESPACE::LoadPart;
using core::HWY_NAMESPACE::Tag;

template <typename TElement>
constexpr bool kHasNarrow = sizeof(TElement) <= 4;
template <typename TElement>
using Packed = std::conditional_t<sizeof(TElement) <= 2, int32_t, int64_t>;
// How many bits are below the key.
template <typename TElement>
constexpr int kColumnBits = 4 * sizeof(Packed<TElement>);

// Columns [c, c + lanes) of a row as packed integers. Those from column n on are meaningless.
template <class F, typename TI = typename F::Element>
HWY_INLINE hn::Vec<Tag<Packed<TI>>> Pack(const TI* row, size_t c, size_t n, F format) {
  const Tag<Packed<TI>> d;
  const hn::Rebind<TI, Tag<Packed<TI>>> narrow;
  constexpr int kLow = kColumnBits<TI>;
  constexpr auto kMask = static_cast<Packed<TI>>((Packed<TI>{1} << kLow) - 1);
  const auto bits =
      c + hn::Lanes(d) <= n ? hn::LoadU(narrow, row + c) : LoadPart(narrow, row + c, n - c);
  const auto keys = hn::PromoteTo(d, Keys(narrow, bits, format));
  const auto columns = hn::Iota(d, static_cast<Packed<TI>>(c));
  return hn::Or(hn::ShiftLeft<kLow>(keys), hn::Sub(hn::Set(d, kMask), columns));
}

// Stores the 16-byte blocks of v at to[0], to[step], ...
template <class D, class V = hn::Vec<D>, typename T = hn::TFromD<D>>
HWY_INLINE void StoreBlocks(D d, V v, T* to, size_t step) {
  const hn::BlockDFromD<D> block;
  constexpr size_t kBlocks = hn::MaxLanes(d) * sizeof(T) / 16;
  hn::Store(hn::ExtractBlock<0>(v), block, to);
  if constexpr (kBlocks > 1) {
    hn::Store(hn::ExtractBlock<1>(v), block, to + step);
  }
  if constexpr (kBlocks > 2) {
    hn::Store(hn::ExtractBlock<2>(v), block, to + 2 * step);
    hn::Store(hn::ExtractBlock<3>(v), block, to + 3 * step);
  }
}

// Transposes a tile of rows: columns[i] becomes a vector of element i of each row. It takes four
// rows (two of float32) at a time, 16 bytes of each; past the last row it repeats that one.
template <class F, typename TI = typename F::Element>
HWY_INLINE void PackTile(const NarrowRows& task, const uint8_t* x, size_t rows, F format,
                         Packed<TI>* columns) {
  const Tag<Packed<TI>> d;
  constexpr size_t kPerBlock = 16 / sizeof(Packed<TI>);
  const size_t lanes = hn::Lanes(d);
  for (size_t r = 0; r < rows; r += kPerBlock) {
    const auto row = [&](size_t i) {
      const auto at = static_cast<int64_t>(std::min(r + i, rows - 1));
      return reinterpret_cast<const TI*>(x + at * task.row_stride);
    };
    for (size_t c = 0; c < task.n; c += lanes) {
      Packed<TI>* to = columns + c * lanes + r;
      const size_t step = kPerBlock * lanes;
      const auto a = Pack(row(0), c, task.n, format);
      const auto b = Pack(row(1), c, task.n, format);
      if constexpr (kPerBlock == 2) {
        StoreBlocks(d, hn::InterleaveLower(d, a, b), to, step);
        StoreBlocks(d, hn::InterleaveUpper(d, a, b), to + lanes, step);
      } else {
        const auto e = Pack(row(2), c, task.n, format);
        const auto f = Pack(row(3), c, task.n, format);
        const auto ae0 = hn::InterleaveLower(d, a, e);
        const auto ae2 = hn::InterleaveUpper(d, a, e);
        const auto bf0 = hn::InterleaveLower(d, b, f);
        const auto bf2 = hn::InterleaveUpper(d, b, f);
        StoreBlocks(d, hn::InterleaveLower(d, ae0, bf0), to, step);
        StoreBlocks(d, hn::InterleaveUpper(d, ae0, bf0), to + lanes, step);
        StoreBlocks(d, hn::InterleaveLower(d, ae2, bf2), to + 2 * lanes, step);
        StoreBlocks(d, hn::InterleaveUpper(d, ae2, bf2), to + 3 * lanes, step);
      }
    }
  }
}

// The kBest largest of the vectors inserted, lane by lane and in order; kept in registers.
template <size_t kBest, typename TP>
struct Best {
  using D = Tag<TP>;
  hn::Vec<D> first;
  Best<kBest - 1, TP> others;

  HWY_INLINE Best() : first(hn::Set(D(), hwy::LimitsMin<TP>())) {}
  HWY_INLINE void Insert(hn::Vec<D> v) {
    others.Insert(hn::Min(first, v));
    first = hn::Max(first, v);
  }
  HWY_INLINE void Store(TP* columns) const {
    hn::Store(first, D(), columns);
    others.Store(columns + hn::Lanes(D()));
  }
};
template <typename TP>
struct Best<0, TP> {
  HWY_INLINE Best() {}
  HWY_INLINE void Insert(hn::Vec<Tag<TP>>) {}
  HWY_INLINE void Store(TP*) const {}
};

// Moves the kBest largest of n columns, in order, to the first kBest columns.
template <size_t kBest, typename TP>
HWY_INLINE void SinkColumns(TP* columns, size_t n) {
  const Tag<TP> d;
  Best<kBest, TP> best;
  for (size_t i = 0; i < n; ++i) {
    best.Insert(hn::Load(d, columns + i * hn::Lanes(d)));
  }
  best.Store(columns);
}

// Sorts all columns, by Batcher's odd-even merge sort (Sorting networks and their applications,
// 1968).
template <typename TP>
HWY_INLINE void SortColumns(TP* columns, size_t n) {
  const Tag<TP> d;
  const size_t lanes = hn::Lanes(d);
  for (size_t sorted = 1; sorted < n; sorted *= 2) {
    for (size_t apart = sorted; apart > 0; apart /= 2) {
      for (size_t first = apart % sorted; first + apart < n; first += 2 * apart) {
        const size_t end = std::min(first + apart, n - apart);
        for (size_t i = first; i < end; ++i) {
          if ((i ^ (i + apart)) >= 2 * sorted) {
            continue;  // the two are in different pairs of runs
          }
          TP* upper = columns + i * lanes;
          TP* lower = upper + apart * lanes;
          const auto a = hn::Load(d, upper);
          const auto b = hn::Load(d, lower);
          hn::Store(hn::Max(a, b), d, upper);
          hn::Store(hn::Min(a, b), d, lower);
        }
      }
    }
  }
}

// Moves the k largest of n columns, in order, to the first k. Up to 16 vectors stay in registers,
// where inserting one costs an eighth of a compare-and-swap in memory, as the network does it.
template <typename TP>
HWY_INLINE void SelectColumns(TP* columns, size_t n, size_t k) {
  if (k == 1) {
    SinkColumns<1>(columns, n);
  } else if (k == 2) {
    SinkColumns<2>(columns, n);
  } else if (k <= 4) {
    SinkColumns<4>(columns, n);
  } else if (k <= 8) {
    SinkColumns<8>(columns, n);
  } else if (k <= kNarrowSink) {
    SinkColumns<kNarrowSink>(columns, n);
  } else {
    SortColumns(columns, n);
  }
}

template <typename TI, typename TIndex>
HWY_INLINE void EmitTile(const NarrowRows& task, const uint8_t* x, size_t first, size_t rows,
                         const Packed<TI>* columns) {
  constexpr auto kMask = static_cast<Packed<TI>>((Packed<TI>{1} << kColumnBits<TI>)-1);
  const size_t lanes = hn::Lanes(Tag<Packed<TI>>());
  for (size_t r = 0; r < rows; ++r) {
    const auto row = static_cast<int64_t>(first + r);
    const uint8_t* from = x + static_cast<int64_t>(r) * task.row_stride;
    uint8_t* values = task.values + row * task.values_stride;
    uint8_t* indices = task.indices + row * task.indices_stride;
    for (size_t i = 0; i < task.k; ++i) {
      const auto column = static_cast<TIndex>(~columns[i * lanes + r] & kMask);
      std::memcpy(values + i * sizeof(TI), from + static_cast<size_t>(column) * sizeof(TI),
                  sizeof(TI));
      std::memcpy(indices + i * sizeof(TIndex), &column, sizeof(TIndex));
    }
  }
}

// Selects in rows [begin, end). `scratch` has NarrowScratch(n) bytes.
template <class F>
void SelectNarrow(const NarrowRows& task, size_t begin, size_t end, F format, uint8_t* scratch) {
  using TI = typename F::Element;
  const size_t lanes = hn::Lanes(Tag<Packed<TI>>());
  HWY_DASSERT(begin <= end && 0 < task.k && task.k <= task.n);
  HWY_DASSERT(reinterpret_cast<uintptr_t>(scratch) % core::kScratchAlignment == 0);
  auto* columns = reinterpret_cast<Packed<TI>*>(scratch);
  for (size_t first = begin; first < end; first += lanes) {
    const size_t rows = std::min(lanes, end - first);
    const uint8_t* x = task.x + static_cast<int64_t>(first) * task.row_stride;
    PackTile(task, x, rows, format, columns);
    SelectColumns(columns, task.n, task.k);
    if (task.wide) {
      EmitTile<TI, int64_t>(task, x, first, rows, columns);
    } else {
      EmitTile<TI, int32_t>(task, x, first, rows, columns);
    }
  }
}

}  // namespace riffle::topk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
