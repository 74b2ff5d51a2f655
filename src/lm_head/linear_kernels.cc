#include "lm_head/linear_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/linear_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include "core/dispatch.h"
#include "lm_head/candidates-inl.h"
#include "lm_head/product-inl.h"
#include "lm_head/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::F32Fma;
using core::HWY_NAMESPACE::PrefetchAt;
using core::HWY_NAMESPACE::Tag;
using topk::HWY_NAMESPACE::FindBound;
using topk::HWY_NAMESPACE::Pad;
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
using core::HWY_NAMESPACE::BF16PairDot;
#endif

// Adds the products of a span to sums [args.rows][kTile]. `words`: scratch for W.
template <class Math, class Source>
void RunSpan(const LinearArgs& args, const TileSpan& tile, int64_t number, uint32_t* words,
             float* sums) {
  using Word = typename Math::Word;
  SpanProduct<Math> span;
  span.x = static_cast<const Word*>(args.x) + number * args.laid_out * kSpanWords<Math>;
  span.w = reinterpret_cast<const Word*>(words);
  span.sums = sums;
  span.rows = static_cast<int>(args.rows);
  span.words = tile.padded() / Math::kPerOperand;
  if constexpr (Source::kQ8) {
    LoadScales(tile);
  }
  if (args.transposed) {
    if constexpr (!Source::kQ8) {
      LayOutTransposed<Source::kType, Math::kPerOperand>(tile, words);
    }
  } else if (args.rows <= kFewRows && tile.inputs % kChunk == 0) {
    return FewRows<Math, Source>(span, tile);
  } else {
    LayOutRows<Source, Math::kPerOperand>(tile, words);
  }
  Product<Math, Source>(span, tile, !args.transposed);
}

using RunSpanFunction = void (*)(const LinearArgs&, const TileSpan&, int64_t, uint32_t*, float*);
RunSpanFunction PickRunSpan(const LinearArgs& args) {
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
  if (args.words_of_bf16) {
    return args.format == WeightFormat::kQ8_0 ? RunSpan<BF16PairDot, PairQ8Source>
                                              : RunSpan<BF16PairDot, PairSource>;
  }
#endif
  switch (args.format) {
    case WeightFormat::kF32:
      return RunSpan<F32Fma, FloatSource<DType::kF32>>;
    case WeightFormat::kF16:
      return RunSpan<F32Fma, FloatSource<DType::kF16>>;
    case WeightFormat::kBF16:
      return RunSpan<F32Fma, FloatSource<DType::kBF16>>;
    case WeightFormat::kQ8_0:
      break;
  }
  return RunSpan<F32Fma, FloatQ8Source>;
}

// One thread's way through tiles of W.
class TileRunner {
 public:
  TileRunner(const LinearArgs& args, uint8_t* scratch)
      : args_(args),
        scratch_(scratch),
        layout_(PlanTileScratch(args.rows)),
        run_span_(PickRunSpan(args)),
        q8_(args.format == WeightFormat::kQ8_0),
        element_(args.format == WeightFormat::kF32 ? 4 : 2) {}

  // The logits of a tile, [rows][kTile] f32, finished.
  const float* Run(int64_t tile) {
    first_ = tile * kTile;
    chosen_ = nullptr;
    columns_ = static_cast<int>(std::min<int64_t>(kTile, args_.vocab - first_));
    return RunTile();
  }
  // Of any `count` columns, at most kTile. Not if transposed.
  const float* RunChosen(const int32_t* columns, int count) {
    first_ = 0;
    chosen_ = columns;
    columns_ = count;
    return RunTile();
  }
  int columns() const { return columns_; }

 private:
  float* Sums() { return reinterpret_cast<float*>(scratch_ + layout_.sums); }

  int64_t Column(int i) const { return chosen_ != nullptr ? chosen_[i] : first_ + i; }

  const float* RunTile() {
    float* sums = Sums();
    std::fill_n(sums, args_.rows * kTile, 0.0f);
    TileSpan span = Begin();
    for (int64_t number = 0; number < args_.spans(); ++number) {
      const int64_t input = number * kSpan;
      span.offset = q8_ ? input / kQ8Block * kQ8BlockBytes : input * element_;
      span.from = args_.weight + input * span.stride + first_ * element_;
      span.inputs = static_cast<int>(std::min<int64_t>(kSpan, args_.d - input));
      run_span_(args_, span, number, reinterpret_cast<uint32_t*>(scratch_ + layout_.words), sums);
    }
    Complete();
    return sums;
  }

  TileSpan Begin() {
    TileSpan span;
    for (int i = 0; i < kTile; ++i) {
      span.column[i] = args_.transposed
                           ? nullptr
                           : args_.weight + Column(std::min(i, columns_ - 1)) * args_.weight_stride;
    }
    span.column_bytes = q8_ ? args_.d / kQ8Block * kQ8BlockBytes : args_.d * element_;
    span.next_tile = chosen_ != nullptr ? 0 : kTile * args_.weight_stride;
    span.stride = args_.transposed ? args_.weight_stride : 0;
    span.columns = columns_;
    span.tails = scratch_ + layout_.tails;
    span.scales = reinterpret_cast<float*>(scratch_ + layout_.scales);
    return span;
  }

  // Adds the bias; +0 for zeros, one NaN for all.
  void Complete() {
    const WordF32 df;
    auto* bias = reinterpret_cast<float*>(scratch_ + layout_.bias);
    LoadBias(bias);
    float* sums = Sums();
    const auto nan = hn::BitCast(df, hn::Set(WordU32(), kCanonicalNaN));
    for (int64_t row = 0; row < args_.rows; ++row, sums += kTile) {
      for (int i = 0; i < kTile; i += kLanes) {
        auto value = hn::Load(df, sums + i);
        if (args_.bias.data != nullptr) {
          value = hn::Add(value, hn::Load(df, bias + i));
        }
        value = hn::Add(value, hn::Zero(df));
        hn::Store(hn::IfThenElse(hn::IsNaN(value), nan, value), df, sums + i);
      }
    }
  }

  void LoadBias(float* bias) {
    for (int i = 0; i < kTile && args_.bias.data != nullptr; ++i) {
      bias[i] = i < columns_ ? BiasAt(args_.bias, Column(i)) : 0.0f;
    }
  }

  const LinearArgs& args_;
  uint8_t* scratch_;
  TileScratch layout_;
  RunSpanFunction run_span_;
  bool q8_;
  int64_t element_;
  int64_t first_ = 0;
  const int32_t* chosen_ = nullptr;
  int columns_ = 0;
};

void StoreTiles(const LinearArgs& args, int64_t begin, int64_t end, const StoreSink& sink,
                uint8_t* scratch) {
  TileRunner runner(args, scratch);
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* sums = runner.Run(tile);
    for (int64_t row = 0; row < args.rows; ++row) {
      std::memcpy(sink.y + row * sink.row_stride + tile * kTile, sums + row * kTile,
                  static_cast<size_t>(runner.columns()) * sizeof(float));
    }
  }
}

// A row's list in the scratch of a piece.
HWY_INLINE Keys32 ListOf(const CandidateSink& sink, int64_t row, uint8_t* scratch) {
  const auto* counts = reinterpret_cast<const int64_t*>(scratch + sink.layout.counts);
  return {reinterpret_cast<int32_t*>(scratch + sink.layout.keys) + row * sink.layout.stride,
          reinterpret_cast<int32_t*>(scratch + sink.layout.columns) + row * sink.layout.stride,
          static_cast<size_t>(counts[row])};
}

HWY_INLINE void Raise(std::atomic<int32_t>& bound, int32_t key) {
  int32_t old = bound.load(std::memory_order_relaxed);
  while (key > old && !bound.compare_exchange_weak(old, key, std::memory_order_relaxed)) {
  }
}

void KeepTiles(const LinearArgs& args, int64_t begin, int64_t end, const CandidateSink& sink,
               uint8_t* scratch) {
  TileRunner runner(args, scratch);
  auto* counts = reinterpret_cast<int64_t*>(scratch + sink.layout.counts);
  std::fill_n(counts, args.rows, 0);
  const auto k = static_cast<size_t>(sink.k);
  const auto limit = static_cast<size_t>(sink.plan.limit);
  const auto capacity = static_cast<size_t>(sink.plan.capacity);
  for (int64_t tile = begin; tile < end; ++tile) {
    const float* sums = runner.Run(tile);
    for (int64_t row = 0; row < args.rows; ++row) {
      Keys32 list = ListOf(sink, row, scratch);
      std::atomic<int32_t>& bound = sink.kept.bounds[row];
      if (list.count + kTile > capacity && list.count > limit) {
        Raise(bound, Trim(list, k, limit));
      }
      AppendTile(sums + row * kTile, static_cast<int>(tile * kTile), runner.columns(),
                 bound.load(std::memory_order_relaxed), list);
      counts[row] = static_cast<int64_t>(list.count);
    }
  }
  for (int64_t row = 0; row < args.rows; ++row) {
    Keys32 list = ListOf(sink, row, scratch);
    if (list.count > limit) {
      Raise(sink.kept.bounds[row], Trim(list, k, limit));
    }
    const int64_t at = sink.piece * args.rows + row;
    std::copy_n(list.keys, list.count, sink.kept.keys + at * sink.plan.limit);
    std::copy_n(list.indices, list.count, sink.kept.columns + at * sink.plan.limit);
    sink.kept.counts[at] = static_cast<int64_t>(list.count);
  }
}

// The candidates of a row that may be among its k best, in ascending order; returns how many.
size_t Survivors(const ScreenedRow& task, int32_t* columns) {
  const ScreenLists& lists = task.lists;
  const int64_t begin = task.row * lists.stride;
  const auto count = static_cast<size_t>(lists.counts[task.row]);
  const auto k = static_cast<size_t>(task.k);
  int32_t* lowers = lists.lowers + begin;
  Pad(Tag<int32_t>(), lowers, count);
  const float bound = core::KeyToFloat(
      FindBound(lowers, count, k, k + k / 16, core::kF32Format.lowest_key(), core::kF32Format).key,
      DType::kF32);
  size_t kept = 0;
  for (size_t i = 0; i < count; ++i) {
    if (!(lists.uppers[begin + static_cast<int64_t>(i)] < bound)) {
      columns[kept++] = lists.columns[begin + static_cast<int64_t>(i)];
    }
  }
  std::sort(columns, columns + kept);
  return kept;
}

void PrefetchColumns(const LinearArgs& args, const int32_t* columns, size_t count) {
  const int64_t bytes = args.d / kQ8Block * kQ8BlockBytes;
  for (size_t i = 0; i < count; ++i) {
    for (int64_t at = 0; at < bytes; at += 64) {
      PrefetchAt(args.weight + columns[i] * args.weight_stride, at);
    }
  }
}

// Multiplies the candidates of a row that was screened, and writes the k best.
int64_t FinishScreenedImpl(const LinearArgs& args, const ScreenedRow& task, uint8_t* scratch) {
  LinearArgs one = args;
  one.rows = 1;
  one.x = static_cast<const uint8_t*>(args.x) + task.row * args.span_words() * 4;
  auto* columns = reinterpret_cast<int32_t*>(scratch + task.layout.candidates);
  Keys32 list{reinterpret_cast<int32_t*>(scratch + task.layout.list.keys),
              reinterpret_cast<int32_t*>(scratch + task.layout.list.columns), 0};
  const size_t count = Survivors(task, columns);
  TileRunner runner(one, scratch);
  constexpr size_t kColumns = kTile;
  PrefetchColumns(args, columns, std::min(count, kColumns));
  for (size_t i = 0; i < count; i += kColumns) {
    const size_t here = std::min(kColumns, count - i);
    PrefetchColumns(args, columns + i + here, std::min(kColumns, count - i - here));
    const float* sums = runner.RunChosen(columns + i, static_cast<int>(here));
    AppendTile(sums, 0, static_cast<int>(here), core::kF32Format.lowest_key(), list);
    std::copy_n(columns + i, here, list.indices + list.count - here);
  }
  WriteBest(list, task.k, task.layout.list, scratch, task.values, task.indices);
  return static_cast<int64_t>(count);
}

const LinearKernels* GetLinearKernelsImpl() {
  static constexpr LinearKernels kKernels{HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86,
                                          RowToWordsAny,
                                          StoreTiles,
                                          KeepTiles,
                                          FinishRowImpl,
                                          FinishScreenedImpl};
  return &kKernels;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::lm_head {
HWY_EXPORT(GetLinearKernelsImpl);

const LinearKernels& GetLinearKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(GetLinearKernelsImpl))();
}

}  // namespace riffle::lm_head
#endif  // HWY_ONCE
