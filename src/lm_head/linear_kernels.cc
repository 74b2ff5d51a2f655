#include "lm_head/linear_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm_head/linear_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on

#include "lm_head/candidates-inl.h"
#include "lm_head/product-inl.h"
#include "lm_head/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {

// One thread's way through tiles of W.
template <class Math>
class TileRunner {
 public:
  TileRunner(const LinearArgs& args, uint8_t* scratch)
      : args_(args), scratch_(scratch), layout_(PlanTileScratch(args.rows)) {}

  // The logits of a tile, [rows][kTile] f32, finished.
  const float* Run(int64_t tile) {
    const int64_t column = tile * kTile;
    columns_ = static_cast<int>(std::min<int64_t>(kTile, args_.vocab - column));
    float* sums = Sums();
    if (args_.d == 0) {
      std::fill_n(sums, args_.rows * kTile, 0.0f);
    }
    for (int64_t span = 0; span < args_.spans(); ++span) {
      RunSpan(column, span);
    }
    Complete(column);
    return sums;
  }
  int columns() const { return columns_; }

 private:
  float* Sums() { return reinterpret_cast<float*>(scratch_ + layout_.sums); }

  void RunSpan(int64_t column, int64_t span) {
    TileSpan tile;
    const int64_t input = span * kSpan;
    const bool q8 = args_.format == WeightFormat::kQ8_0;
    const int64_t element = args_.format == WeightFormat::kF32 ? 4 : 2;
    const int64_t offset = q8 ? input / kQ8Block * kQ8BlockBytes : input * element;
    tile.from = args_.weight + (args_.transposed ? input * args_.weight_stride + column * element
                                                 : column * args_.weight_stride + offset);
    tile.stride = args_.weight_stride;
    tile.columns = columns_;
    tile.inputs = static_cast<int>(std::min<int64_t>(kSpan, args_.d - input));
    tile.ahead = 0;
    tile.words = scratch_ + layout_.words;
    tile.scales = reinterpret_cast<float*>(scratch_ + layout_.scales);
    tile.tails = scratch_ + layout_.tails;
    LayOutTile(Math(), args_, tile);

    using Word = typename Math::Word;
    SpanProduct<Math> product;
    product.x = static_cast<const Word*>(args_.x) + span * args_.rows * Math::kSpanWords;
    product.w = reinterpret_cast<const Word*>(tile.words);
    product.scales = tile.scales;
    product.sums = Sums();
    product.rows = static_cast<int>(args_.rows);
    product.words = (tile.inputs + kChunk - 1) / kChunk * kChunk / Math::kPerWord;
    product.first = span == 0;
    if (q8) {
      Product<Math, true>(product);
    } else {
      Product<Math, false>(product);
    }
  }

  // Adds the bias; +0 for zeros, one NaN for all.
  void Complete(int64_t column) {
    const WordF32 df;
    auto* bias = reinterpret_cast<float*>(scratch_ + layout_.bias);
    LoadBias(column, bias);
    float* sums = Sums();
    const auto nan = hn::BitCast(df, hn::Set(WordU32(), 0x7fc00000u));
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

  void LoadBias(int64_t column, float* bias) {
    if (args_.bias.data == nullptr) {
      return;
    }
    const size_t element = SizeOf(args_.bias.dtype);
    const auto* from = static_cast<const uint8_t*>(args_.bias.data) +
                       static_cast<size_t>(column) * element;
    for (int i = 0; i < kTile; ++i) {
      bias[i] = 0;
      if (i < columns_ && element == 4) {
        std::memcpy(bias + i, from + 4 * i, 4);
      } else if (i < columns_) {
        uint16_t bits;
        std::memcpy(&bits, from + 2 * i, 2);
        bias[i] = ToFloat(bits, args_.bias.dtype);
      }
    }
  }

  const LinearArgs& args_;
  uint8_t* scratch_;
  TileScratch layout_;
  int columns_ = 0;
};

template <class Math>
void StoreTilesAs(const LinearArgs& args, int64_t begin, int64_t end, const StoreSink& sink,
                  uint8_t* scratch) {
  TileRunner<Math> runner(args, scratch);
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

template <class Math>
void KeepTilesAs(const LinearArgs& args, int64_t begin, int64_t end, const CandidateSink& sink,
                 uint8_t* scratch) {
  TileRunner<Math> runner(args, scratch);
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

void StoreTiles(const LinearArgs& args, int64_t begin, int64_t end, const StoreSink& sink,
                uint8_t* scratch) {
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
  if (args.words_of_bf16) {
    return StoreTilesAs<PairWords>(args, begin, end, sink, scratch);
  }
#endif
  StoreTilesAs<FloatWords>(args, begin, end, sink, scratch);
}

void KeepTiles(const LinearArgs& args, int64_t begin, int64_t end, const CandidateSink& sink,
               uint8_t* scratch) {
#if HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86
  if (args.words_of_bf16) {
    return KeepTilesAs<PairWords>(args, begin, end, sink, scratch);
  }
#endif
  KeepTilesAs<FloatWords>(args, begin, end, sink, scratch);
}

const LinearKernels* GetLinearKernelsImpl() {
  static constexpr LinearKernels kKernels{HWY_NATIVE_DOT_BF16 && HWY_ARCH_X86, RowToWordsAny,
                                          StoreTiles, KeepTiles, FinishRowImpl};
  return &kKernels;
}

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle {
HWY_EXPORT(GetLinearKernelsImpl);

const LinearKernels& GetLinearKernels() { return *HWY_DYNAMIC_DISPATCH(GetLinearKernelsImpl)(); }

}  // namespace riffle
#endif  // HWY_ONCE
