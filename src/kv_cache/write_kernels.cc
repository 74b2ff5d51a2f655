#include "kv_cache/write_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kv_cache/write_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/dispatch.h"
#include "kv_cache/encode-inl.h"
#include "kv_cache/quantize_blocks-inl.h"
#include "kv_cache/scale_values.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::kv_cache::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE void CopyBytes(const uint8_t* in, uint8_t* out, size_t bytes) {
  const hn::ScalableTag<uint8_t> d8;
  const size_t lanes = hn::Lanes(d8);
  if (bytes < lanes) {
    std::memcpy(out, in, bytes);
    return;
  }
  for (size_t i = 0; i + lanes <= bytes; i += lanes) {
    hn::StoreU(hn::LoadU(d8, in + i), d8, out + i);
  }
  if (bytes % lanes != 0) {  // the last vector overlaps the one before it
    hn::StoreU(hn::LoadU(d8, in + bytes - lanes), d8, out + bytes - lanes);
  }
}

// The same by streaming stores. Pre: `out` and `bytes` are multiples of a cache line.
HWY_INLINE void StreamBytes(const uint8_t* in, uint8_t* out, size_t bytes) {
  const hn::CappedTag<uint8_t, kLine> d8;
  HWY_DASSERT(reinterpret_cast<uintptr_t>(out) % kLine == 0 && bytes % kLine == 0);
  for (size_t i = 0; i < bytes; i += hn::Lanes(d8)) {
    hn::Stream(hn::LoadU(d8, in + i), d8, out + i);
  }
}

// Applies `convert`, on vectors of f32, to a row and stores the result as kOut.
template <DType kIn, DType kOut, class F>
HWY_INLINE void WriteRow(const uint8_t* in, uint8_t* out, size_t n, const F& convert) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Encode<kOut>(df, convert(LoadF32<kIn>(df, in + i * SizeOf(kIn))), out + i * SizeOf(kOut));
  }
  if (i < n) {
    const VF last = LoadF32N<kIn>(df, in + i * SizeOf(kIn), n - i);
    EncodeN<kOut>(df, convert(last), out + i * SizeOf(kOut), n - i);
  }
}

// The largest magnitude of a row; NaN if an element is NaN.
template <DType kIn>
HWY_INLINE float MaxMagnitude(const uint8_t* in, size_t n) {
  const DF df;
  const hn::RebindToSigned<DF> di;
  const size_t lanes = hn::Lanes(df);
  auto max = hn::Zero(di);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const VF x = LoadF32<kIn>(df, in + i * SizeOf(kIn));
    max = hn::Max(max, hn::BitCast(di, hn::Abs(x)));
  }
  if (i < n) {
    const VF x = LoadF32N<kIn>(df, in + i * SizeOf(kIn), n - i);
    max = hn::Max(max, hn::BitCast(di, hn::Abs(x)));
  }
  return std::bit_cast<float>(hn::ReduceMax(di, max));
}

// Writes elements without scales.
template <DType kIn, DType kOut>
void WritePlain(const WriteArgs& args, const TokenRows& token) {
  const auto n = static_cast<size_t>(args.head_dim);
  const uint8_t* in = token.in;
  uint8_t* out = token.out;
  for (int64_t head = 0; head < args.heads; ++head) {
    if constexpr (kIn == kOut) {
      if (args.streams) {
        StreamBytes(in, out, n * SizeOf(kIn));
      } else {
        CopyBytes(in, out, n * SizeOf(kIn));
      }
    } else {
      WriteRow<kIn, kOut>(in, out, n, [](VF x) HWY_ATTR { return x; });
    }
    in += args.in_head;
    out += args.out_head;
  }
}

// Divides elements by the scale that was computed for them. Rounding to its dtype may have made the
// scale smaller, by much if it is tiny: quotients saturate at the largest code.
template <DType kOut>
HWY_INLINE VF DivideBelowOverflow(VF x, float scale) {
  const DF df;
  const VF quotient = hn::Div(x, hn::Set(df, scale));
  const VF largest = hn::Set(df, MaxCode(kOut));
  const auto overflows = hn::Gt(hn::Abs(quotient), largest);  // false for NaN, which stays
  return hn::IfThenElse(overflows, hn::CopySign(largest, quotient), quotient);
}

// Writes one-byte elements, which are divided by scales.
template <DType kIn, DType kOut>
void WriteScaled(const WriteArgs& args, const TokenRows& token) {
  static_assert(SizeOf(kOut) == 1);
  if (token.scales == nullptr && token.computed_scales == nullptr) {
    return WritePlain<kIn, kOut>(args, token);
  }
  HWY_DASSERT(args.group > 0);
  for (int64_t head = 0; head < args.heads; ++head) {
    const uint8_t* in = token.in + head * args.in_head;
    uint8_t* out = token.out + head * args.out_head;
    int64_t scale_at = head * args.scale_head;
    for (int64_t i = 0; i < args.head_dim; i += args.group, scale_at += args.scale_group) {
      const auto n = static_cast<size_t>(std::min(args.group, args.head_dim - i));
      const uint8_t* from = in + static_cast<size_t>(i) * SizeOf(kIn);
      float scale;
      if (token.computed_scales != nullptr) {
        const float wanted = MaxMagnitude<kIn>(from, n) / MaxCode(kOut) * args.divisor;
        scale = StoreScale(args.scale_dtype, wanted, token.computed_scales + scale_at);
      } else {
        scale = LoadScale(args.scale_dtype, token.scales + scale_at);
      }
      scale /= args.divisor;
      if (scale == 0.0f) {
        std::memset(out + i, 0, n);
        continue;
      }
      if (kOut == DType::kE5M2 && token.computed_scales != nullptr) {  // the others saturate
        WriteRow<kIn, kOut>(from, out + i, n,
                            [scale](VF x) HWY_ATTR { return DivideBelowOverflow<kOut>(x, scale); });
      } else {
        WriteRow<kIn, kOut>(from, out + i, n,
                            [scale](VF x) HWY_ATTR { return hn::Div(x, hn::Set(DF(), scale)); });
      }
    }
  }
}

template <DType kIn, KvFormat kFormat>
void WriteBlocks(const WriteArgs& args, const TokenRows& token) {
  HWY_DASSERT(args.head_dim % static_cast<int64_t>(kBlock) == 0);
  const size_t blocks = static_cast<size_t>(args.head_dim) / kBlock;
  for (int64_t head = 0; head < args.heads; ++head) {
    const uint8_t* in = token.in + head * args.in_head;
    uint8_t* out = token.out + head * args.out_head;
    for (size_t i = 0; i < blocks; ++i) {
      Block block;
      block.Load<kIn>(in + i * kBlock * SizeOf(kIn));
      QuantizeBlock<kFormat>(block, out);
      out += BlockBytes(kFormat);
    }
  }
}

// The functions in the order of OutFormat.
template <DType kIn>
constexpr WritersFrom Writers() {
  return {{WritePlain<kIn, DType::kF32>, WritePlain<kIn, DType::kF16>,
           WritePlain<kIn, DType::kBF16>, WriteScaled<kIn, DType::kE4M3>,
           WriteScaled<kIn, DType::kE5M2>, WriteScaled<kIn, DType::kI8>,
           WriteBlocks<kIn, KvFormat::kQ8_0>, WriteBlocks<kIn, KvFormat::kQ4_0>,
           WriteBlocks<kIn, KvFormat::kQ4_1>, WriteBlocks<kIn, KvFormat::kQ5_0>,
           WriteBlocks<kIn, KvFormat::kQ5_1>, WriteBlocks<kIn, KvFormat::kIQ4NL>}};
}

const WriteKernels* WriteKernelsForTarget() {
  static constexpr WriteKernels kKernels = {
      {Writers<DType::kF32>(), Writers<DType::kF16>(), Writers<DType::kBF16>()}};
  return &kKernels;
}

}  // namespace riffle::kv_cache::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::kv_cache {

HWY_EXPORT(WriteKernelsForTarget);

const WriteKernels& GetWriteKernels() {
  return *core::ForTarget(HWY_DISPATCH_TABLE(WriteKernelsForTarget))();
}

}  // namespace riffle::kv_cache
#endif
