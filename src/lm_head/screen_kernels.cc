#include "lm_head/screen_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/screen_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include <hwy/cache_control.h>

#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "core/order-inl.h"
#include "lm_head/quantize-inl.h"
#include "lm_head/screen-inl.h"
#include "lm_head/screen_few-inl.h"
#include "topk/select-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Keys;
using core::HWY_NAMESPACE::Tag;
using topk::HWY_NAMESPACE::Bound;
using topk::HWY_NAMESPACE::CompressIndices;
using topk::HWY_NAMESPACE::FindBound;
using topk::HWY_NAMESPACE::Pad;

// One thread's way through tiles of W: approximate logits, and how far from them the exact may be.
class TileScreen {
 public:
  TileScreen(const ScreenArgs& args, const ScreenScratch& layout, uint8_t* scratch)
      : args_(args),
        linear_(args.linear),
        words_(scratch + layout.words),
        scales_(Floats(scratch, layout.scales)),
        norms_(Floats(scratch, layout.norms)),
        bias_(Floats(scratch, layout.bias)),
        slack_(Floats(scratch, layout.slack)),
        sums_(Floats(scratch, layout.sums)) {
    std::fill_n(bias_, kTile, 0.0f);
    std::fill_n(slack_, kTile, 0.0f);
  }

  void Run(int64_t tile) {
    const int64_t column = tile * kTile;
    columns_ = static_cast<int>(std::min<int64_t>(kTile, linear_.vocab - column));
    std::fill_n(sums_, linear_.rows * kTile, 0.0f);
    std::fill_n(norms_, kTile, 0.0f);
    if (args_.few_rows()) {
      RunFew(column);
    } else {
      for (int at = 0; at < columns_; at += kScreenPanel) {
        RunPanel(column, at);
      }
    }
    const WordF32 df;
    for (int i = 0; i < kTile; i += kLanes) {
      // Squares are up to 1 / 128 too small, and rounded.
      const auto norm = hn::Mul(hn::Sqrt(hn::Load(df, norms_ + i)), hn::Set(df, 1.005f));
      hn::Store(norm, df, norms_ + i);
    }
    LoadBias(column);
  }

  int columns() const { return columns_; }

  // Bounds of the logits of a row and kLanes columns. NaN: there is none.
  HWY_INLINE void Bounds(int64_t row, int i, hn::Vec<WordF32>& lower,
                         hn::Vec<WordF32>& upper) const {
    const WordF32 df;
    const ScreenError error = args_.errors[row];
    const auto value = hn::Add(hn::Load(df, sums_ + row * kTile + i), hn::Load(df, bias_ + i));
    const auto slack = hn::Add(hn::Load(df, slack_ + i), hn::Set(df, error.absolute));
    const auto away = hn::MulAdd(hn::Set(df, error.relative), hn::Load(df, norms_ + i), slack);
    lower = hn::Sub(value, away);
    upper = hn::Add(value, away);
  }

 private:
  static float* Floats(uint8_t* scratch, size_t at) {
    return reinterpret_cast<float*>(scratch + at);
  }

  void RunFew(int64_t column) {
    const uint8_t* columns[kTile];
    for (int i = 0; i < kTile; ++i) {
      columns[i] = linear_.weight + (column + std::min(i, columns_ - 1)) * linear_.weight_stride;
    }
    FewColumns few;
    few.column = columns;
    few.bytes = args_.blocks() * kQ8BlockBytes;
    few.ahead = kFewAhead * linear_.weight_stride;
    few.x = args_.few;
    few.chunks = args_.chunks();
    if (linear_.rows == 1) {
      FewScreen<1>(few, sums_, norms_);
    } else if (linear_.rows == 2) {
      FewScreen<2>(few, sums_, norms_);
    } else {
      FewScreen<kFewScreenRows>(few, sums_, norms_);
    }
  }

  void RunPanel(int64_t column, int at) {
    ScreenPanel panel;
    for (int i = 0; i < kScreenPanel; ++i) {
      panel.column[i] =
          linear_.weight + (column + std::min(at + i, columns_ - 1)) * linear_.weight_stride;
    }
    panel.words = words_;
    panel.scales = scales_;
    panel.squares = norms_ + at;
    const int rows = static_cast<int>(linear_.rows);
    const int groups = (rows + kScreenRows - 1) / kScreenRows;
    const ScreenBlock* x = args_.x;
    for (int block = 0; block < args_.blocks(); block += kScreenBlocks) {
      panel.blocks = std::min(kScreenBlocks, args_.blocks() - block);
      const int64_t offset = block * kQ8BlockBytes;
      // The same span of the next panel comes into L2: while this one is laid out if there are few
      // rows, else in the time of the products.
      ColumnPrefetcher prefetcher(panel.column[0], kScreenPanel * linear_.weight_stride + offset,
                                  linear_.weight_stride, panel.blocks * kQ8BlockBytes);
      const bool early = groups == 1;
      const int lines =
          prefetcher.Each(kScreenPanel, panel.blocks * (early ? kScreenPanel / kLanes : groups));
      LayOutScreen(panel, offset, prefetcher, early ? lines : 0);
      for (int group = 0; group < groups; ++group) {  // of about the same size
        const int begin = rows * group / groups;
        const int end = rows * (group + 1) / groups;
        ScreenGroup<kScreenRows>(x + begin * kScreenBlocks, end - begin, panel,
                                 sums_ + begin * kTile + at, prefetcher, early ? 0 : lines);
      }
      x += linear_.rows * kScreenBlocks;
    }
  }

  void LoadBias(int64_t column) {
    if (linear_.bias.data == nullptr) {
      return;
    }
    for (int i = 0; i < columns_; ++i) {
      bias_[i] = BiasAt(linear_.bias, column + i);
      // Beyond that sums might overflow.
      slack_[i] = std::abs(bias_[i]) <= 0x1p100f ? std::abs(bias_[i]) * 0x1p-20f
                                                 : std::numeric_limits<float>::infinity();
    }
  }

  const ScreenArgs& args_;
  const LinearArgs& linear_;
  uint8_t* words_;
  float* scales_;
  float* norms_;
  float* bias_;
  float* slack_;
  float* sums_;
  int columns_ = 0;
};

// Candidates of a row. All arrays are followed by room for
// kSlack elements.
struct ScreenList {
  int32_t* lowers;  // keys of what the exact logit at least is
  float* uppers;
  int32_t* columns;
  size_t count;

  // Those whose upper bound reaches `bound`, or is NaN.
  HWY_INLINE void Append(const TileScreen& tile, int64_t row, int32_t column, float bound) {
    const WordF32 df;
    const ScreenI32 di;
    const auto limit = hn::Set(df, bound);
    for (int i = 0; i < tile.columns(); i += kLanes) {
      hn::Vec<WordF32> lower;
      hn::Vec<WordF32> upper;
      tile.Bounds(row, i, lower, upper);
      auto reach = hn::Not(hn::Lt(upper, limit));
      if (i + kLanes > tile.columns()) {
        reach = hn::And(reach, hn::FirstN(df, static_cast<size_t>(tile.columns() - i)));
      }
      if (hn::AllFalse(df, reach)) {
        continue;
      }
      const auto nothing = hn::Set(df, -std::numeric_limits<float>::infinity());
      const auto known = hn::IfThenElse(hn::IsNaN(lower), nothing, lower);
      const auto keys = Keys(di, hn::BitCast(di, known), core::kF32Format);
      hn::StoreU(hn::Compress(keys, hn::RebindMask(di, reach)), di, lowers + count);
      hn::StoreU(hn::Compress(upper, reach), df, uppers + count);
      count += CompressIndices(di, hn::RebindMask(di, reach), column + i, columns + count);
    }
  }

  void Keep(float bound) {
    size_t kept = 0;
    for (size_t i = 0; i < count; ++i) {
      if (!(uppers[i] < bound)) {
        lowers[kept] = lowers[i];
        uppers[kept] = uppers[i];
        columns[kept++] = columns[i];
      }
    }
    count = kept;
  }

  // A key that at least k of them are known to reach. Pre: count >= k.
  int32_t Bound(size_t k, size_t limit) {
    Pad(Tag<int32_t>(), lowers, count);
    return FindBound(lowers, count, k, limit, core::kF32Format.lowest_key(), core::kF32Format).key;
  }
};

HWY_INLINE void RaiseTo(std::atomic<int32_t>& bound, int32_t key) {
  int32_t old = bound.load(std::memory_order_relaxed);
  while (key > old && !bound.compare_exchange_weak(old, key, std::memory_order_relaxed)) {
  }
}

HWY_INLINE float BoundOf(const ScreenSink& sink, int64_t row) {
  return core::KeyToFloat(sink.lists.bounds[row].load(std::memory_order_relaxed), DType::kF32);
}

HWY_INLINE ScreenList ScreenListOf(const ScreenSink& sink, int64_t row, uint8_t* scratch) {
  const ScreenScratch& layout = sink.layout;
  const int64_t at = row * layout.stride;
  return {reinterpret_cast<int32_t*>(scratch + layout.lowers) + at,
          reinterpret_cast<float*>(scratch + layout.uppers) + at,
          reinterpret_cast<int32_t*>(scratch + layout.columns) + at,
          static_cast<size_t>(reinterpret_cast<int64_t*>(scratch + layout.counts)[row])};
}

// Raises the row's bound by the list and drops what does not reach it.
void Cut(const ScreenSink& sink, int64_t row, ScreenList& list) {
  if (list.count >= static_cast<size_t>(sink.k)) {
    RaiseTo(sink.lists.bounds[row],
            list.Bound(static_cast<size_t>(sink.k), static_cast<size_t>(sink.plan.limit)));
  }
  list.Keep(BoundOf(sink, row));
}

// One at a time adds to a row's candidates.
class RowLock {
 public:
  explicit RowLock(std::atomic<int32_t>& lock) : lock_(lock) {
    while (lock_.exchange(1, std::memory_order_acquire) != 0) {
      hwy::Pause();
    }
  }
  ~RowLock() { lock_.store(0, std::memory_order_release); }
  RowLock(const RowLock&) = delete;
  RowLock& operator=(const RowLock&) = delete;

 private:
  std::atomic<int32_t>& lock_;
};

// Adds what a piece found of a row to what the others did, and raises the bound by all of them.
void Leave(const ScreenSink& sink, int64_t row, ScreenList& list) {
  const ScreenLists& lists = sink.lists;
  list.Keep(BoundOf(sink, row));
  if (list.count == 0) {
    return;
  }
  const RowLock lock(lists.locks[row]);
  const int64_t at = row * lists.stride;
  ScreenList all{lists.lowers + at, lists.uppers + at, lists.columns + at,
                 static_cast<size_t>(lists.counts[row])};
  if (all.count + list.count > static_cast<size_t>(sink.plan.room)) {
    return lists.GiveUp(row);
  }
  std::copy_n(list.lowers, list.count, all.lowers + all.count);
  std::copy_n(list.uppers, list.count, all.uppers + all.count);
  std::copy_n(list.columns, list.count, all.columns + all.count);
  all.count += list.count;
  Cut(sink, row, all);
  lists.counts[row] = static_cast<int64_t>(all.count);
}

bool IsGivenUp(const ScreenSink& sink, int64_t row) {
  return sink.lists.given_up[row].load(std::memory_order_relaxed) != 0;
}

void ScreenTiles(const ScreenArgs& args, int64_t begin, int64_t end, const ScreenSink& sink,
                 uint8_t* scratch) {
  TileScreen screen(args, sink.layout, scratch);
  const int64_t rows = args.linear.rows;
  const auto capacity = static_cast<size_t>(sink.plan.capacity);
  auto* counts = reinterpret_cast<int64_t*>(scratch + sink.layout.counts);
  std::fill_n(counts, rows, 0);
  for (int64_t tile = begin; tile < end; ++tile) {
    if (sink.lists.left->load(std::memory_order_relaxed) == 0) {
      return;
    }
    screen.Run(tile);
    for (int64_t row = 0; row < rows; ++row) {
      if (IsGivenUp(sink, row)) {
        continue;
      }
      ScreenList list = ScreenListOf(sink, row, scratch);
      if (list.count + kTile > capacity) {
        Cut(sink, row, list);
        if (list.count + kTile > capacity) {
          sink.lists.GiveUp(row);
          continue;
        }
      }
      list.Append(screen, row, static_cast<int32_t>(tile * kTile), BoundOf(sink, row));
      counts[row] = static_cast<int64_t>(list.count);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = (i + sink.piece) % rows;  // threads that end together do not meet
    if (!IsGivenUp(sink, row)) {
      ScreenList list = ScreenListOf(sink, row, scratch);
      Leave(sink, row, list);
    }
  }
}

void TileBounds(const ScreenArgs& args, int64_t tile, const ScreenScratch& layout, uint8_t* scratch,
                float* lower, float* upper) {
  const WordF32 df;
  TileScreen screen(args, layout, scratch);
  screen.Run(tile);
  for (int64_t row = 0; row < args.linear.rows; ++row) {
    for (int i = 0; i < kTile; i += kLanes) {
      hn::Vec<WordF32> low;
      hn::Vec<WordF32> high;
      screen.Bounds(row, i, low, high);
      hn::StoreU(low, df, lower + row * kTile + i);
      hn::StoreU(high, df, upper + row * kTile + i);
    }
  }
}

const ScreenKernels* GetScreenKernelsImpl() {
  static constexpr ScreenKernels kKernels{HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL, QuantizeRow,
                                          ScreenTiles, TileBounds};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(GetScreenKernelsImpl);

const ScreenKernels& GetScreenKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(GetScreenKernelsImpl))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
