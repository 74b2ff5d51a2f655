// Rows of x in int8. Included once per SIMD target.
#if defined(RIFFLE_LM_HEAD_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_LM_HEAD_QUANTIZE_INL_H_
#undef RIFFLE_LM_HEAD_QUANTIZE_INL_H_
#else
#define RIFFLE_LM_HEAD_QUANTIZE_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cmath>

#include "lm_head/screen_args.h"
#include "lm_head/words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Squares of |x| and of |x - x'|.
struct ScreenSizes {
  double x = 0;
  double error = 0;
};

constexpr int32_t kTooLarge = std::bit_cast<int32_t>(0x1p64f);  // as infinities and NaNs are
constexpr float kTooSmall = 0x1p-100f;                          // taken for zero

// 32 inputs. False if one is not finite or too large.
template <DType kType>
HWY_INLINE bool QuantizeBlock(const uint8_t* words, ScreenBlock& block, ScreenSizes& sizes) {
  const WordF32 df;
  const hn::RebindToSigned<WordF32> di;
  const hn::Rebind<int8_t, WordF32> d8;
  constexpr int kVectors = static_cast<int>(kQ8Block) / kLanes;
  hn::Vec<WordF32> x[kVectors];
  auto most = hn::Zero(di);
  for (int i = 0; i < kVectors; ++i) {
    x[i] = LoadF32<kType>(words + static_cast<size_t>(i * kLanes) * SizeOf(kType));
    most = hn::Max(most, hn::And(hn::BitCast(di, x[i]), hn::Set(di, 0x7fffffff)));
  }
  const int32_t bits = hn::ReduceMax(di, most);
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
  block.step = largest / 127.0f;
  const auto inverse = hn::Set(df, 127.0f / largest);
  const auto limit = hn::Set(di, 127);
  auto sum = hn::Zero(di);
  auto squares = hn::Zero(df);
  auto errors = hn::Zero(df);
  int8_t q8[kQ8Block];
  for (int i = 0; i < kVectors; ++i) {
    const auto t = hn::Mul(x[i], inverse);
    // 127 is passed only if the caller has set another rounding mode.
    const auto q = hn::Min(hn::Max(hn::NearestInt(t), hn::Neg(limit)), limit);
    const auto error = hn::Sub(t, hn::ConvertTo(df, q));
    squares = hn::MulAdd(t, t, squares);
    errors = hn::MulAdd(error, error, errors);
    sum = hn::Add(sum, q);
    hn::StoreU(hn::DemoteTo(d8, q), d8, q8 + i * kLanes);
  }
  std::memcpy(block.words, q8, sizeof(q8));
  block.start = -128 * hn::ReduceSum(di, sum);
  const double step = block.step;
  sizes.x += step * step * double{hn::ReduceSum(df, squares)};
  sizes.error += step * step * double{hn::ReduceSum(df, errors)};
  return true;
}

// Row `row` of args.linear into args.x and args.errors. False if it cannot be screened.
bool QuantizeRow(const ScreenArgs& args, int64_t row) {
  const LinearArgs& linear = args.linear;
  const size_t bytes = linear.words_of_bf16 ? 2 : 4;  // of an input
  constexpr int kSpanBlocks = kSpan / static_cast<int>(kQ8Block);
  ScreenSizes sizes;
  for (int i = 0; i < args.blocks(); ++i) {
    const auto input = static_cast<size_t>((i / kSpanBlocks * linear.laid_out + row) * kSpan +
                                           i % kSpanBlocks * kQ8Block);
    const uint8_t* words = static_cast<const uint8_t*>(linear.x) + input * bytes;
    ScreenBlock& block =
        args.x[(i / kScreenBlocks * linear.rows + row) * kScreenBlocks + i % kScreenBlocks];
    if (!(linear.words_of_bf16 ? QuantizeBlock<DType::kBF16>(words, block, sizes)
                               : QuantizeBlock<DType::kF32>(words, block, sizes))) {
      return false;
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

}  // namespace riffle::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
