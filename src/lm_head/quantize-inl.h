// Rows of x in int8. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_QUANTIZE_INL_H_
#undef RIFFLE_LM_HEAD_QUANTIZE_INL_H_
#else
#define RIFFLE_LM_HEAD_QUANTIZE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "lm_head/screen_args.h"
#include "lm_head/words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::lm_head::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Squares of |x| and of |x - x'|.
struct ScreenSizes {
  double x = 0;
  double error = 0;
};

constexpr int32_t kTooLarge = std::bit_cast<int32_t>(0x1p64f);  // as infinities and NaNs are
constexpr float kTooSmall = 0x1p-100f;                          // taken for zero

// 32 inputs as step * q, q from -most to most.
struct QuantizedBlock {
  alignas(64) int32_t q[kQ8Block];
  int32_t sum;  // of q
  float step;
};

// False if an input is not finite or too large.
template <DType kType>
HWY_INLINE bool QuantizeBlock(const uint8_t* words, int32_t most, QuantizedBlock& block,
                              ScreenSizes& sizes) {
  const WordF32 df;
  const hn::RebindToSigned<WordF32> di;
  constexpr int kVectors = static_cast<int>(kQ8Block) / kLanes;
  hn::Vec<WordF32> x[kVectors];
  auto magnitude = hn::Zero(di);
  for (int i = 0; i < kVectors; ++i) {
    x[i] = LoadF32<kType>(words + static_cast<size_t>(i * kLanes) * SizeOf(kType));
    magnitude = hn::Max(magnitude, hn::And(hn::BitCast(di, x[i]), hn::Set(di, 0x7fffffff)));
  }
  const int32_t bits = hn::ReduceMax(di, magnitude);
  if (bits >= kTooLarge) {
    return false;
  }
  block = {};
  const float largest = std::bit_cast<float>(bits);
  if (largest < kTooSmall) {
    sizes.x += kQ8Block * double{kTooSmall} * kTooSmall;
    sizes.error += kQ8Block * double{kTooSmall} * kTooSmall;
    return true;
  }
  block.step = largest / static_cast<float>(most);
  const auto inverse = hn::Set(df, static_cast<float>(most) / largest);
  const auto limit = hn::Set(di, most);
  auto sum = hn::Zero(di);
  auto squares = hn::Zero(df);
  auto errors = hn::Zero(df);
  for (int i = 0; i < kVectors; ++i) {
    const auto t = hn::Mul(x[i], inverse);
    // The limit is passed only if the caller has set another rounding mode.
    const auto q = hn::Min(hn::Max(hn::NearestInt(t), hn::Neg(limit)), limit);
    const auto error = hn::Sub(t, hn::ConvertTo(df, q));
    squares = hn::MulAdd(t, t, squares);
    errors = hn::MulAdd(error, error, errors);
    sum = hn::Add(sum, q);
    hn::Store(q, di, block.q + i * kLanes);
  }
  block.sum = hn::ReduceSum(di, sum);
  const double step = block.step;
  sizes.x += step * step * double{hn::ReduceSum(df, squares)};
  sizes.error += step * step * double{hn::ReduceSum(df, errors)};
  return true;
}

HWY_INLINE void StoreScreenBlock(const QuantizedBlock& block, ScreenBlock& to) {
  const hn::RebindToSigned<WordF32> di;
  const hn::Rebind<int8_t, WordF32> d8;
  int8_t q8[kQ8Block];
  for (int i = 0; i < static_cast<int>(kQ8Block); i += kLanes) {
    hn::StoreU(hn::DemoteTo(d8, hn::Load(di, block.q + i)), d8, q8 + i);
  }
  std::memcpy(to.words, q8, sizeof(q8));
  to.start = -128 * block.sum;
  to.step = block.step;
}

// Block `number` of a row, to where the bytes of the block lie in a column of W. Pre: zeros.
inline void StoreFewBlock(const QuantizedBlock& block, int64_t number, FewScreenChunk* chunks) {
  for (int i = 0; i < static_cast<int>(kQ8Block); ++i) {
    const auto at = static_cast<size_t>(number * kQ8BlockBytes + 2 + i);
    FewScreenChunk& chunk = chunks[at / sizeof(chunk.high)];
    const size_t byte = at % sizeof(chunk.high);
    const int32_t high = (block.q[i] + 64) >> 7;
    chunk.high[byte] = static_cast<int8_t>(high);
    chunk.low[byte] = static_cast<int8_t>(block.q[i] - 128 * high);
    chunk.start[byte / 4] -= block.q[i];
    chunk.step[byte / 4] = block.step;
  }
}

// Row `row` of args.linear into args.x (few rows: args.few) and args.errors. False if it cannot be
// screened.
bool QuantizeRow(const ScreenArgs& args, int64_t row) {
  const LinearArgs& linear = args.linear;
  const size_t bytes = linear.words_of_bf16 ? 2 : 4;  // of an input
  constexpr int kSpanBlocks = kSpan / static_cast<int>(kQ8Block);
  const int32_t most = args.few_rows() ? kFewScreenMost : 127;
  FewScreenChunk* few = nullptr;
  if (args.few_rows()) {
    few = args.few + row * args.chunks();
    std::fill_n(few, args.chunks(), FewScreenChunk{});
  }
  ScreenSizes sizes;
  for (int i = 0; i < args.blocks(); ++i) {
    const auto input = static_cast<size_t>((i / kSpanBlocks * linear.laid_out + row) * kSpan +
                                           i % kSpanBlocks * kQ8Block);
    const uint8_t* words = static_cast<const uint8_t*>(linear.x) + input * bytes;
    QuantizedBlock block;
    if (!(linear.words_of_bf16 ? QuantizeBlock<DType::kBF16>(words, most, block, sizes)
                               : QuantizeBlock<DType::kF32>(words, most, block, sizes))) {
      return false;
    }
    if (few != nullptr) {
      StoreFewBlock(block, i, few);
    } else {
      StoreScreenBlock(
          block,
          args.x[(i / kScreenBlocks * linear.rows + row) * kScreenBlocks + i % kScreenBlocks]);
    }
  }
  constexpr double kMore = 1 + 0x1p-10;  // than the roundings of what follows
  const double blocks = args.blocks();
  const double error = std::sqrt(sizes.error);
  const double rounding = 0x1p-21 * (32 + blocks) * (std::sqrt(sizes.x) + error);
  args.errors[row] = {static_cast<float>(kMore * (error + rounding)),
                      static_cast<float>(0x1p-96 * blocks)};
  return true;
}

}  // namespace riffle::lm_head::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
