#include "sparse/index_keys_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/index_keys_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <algorithm>
#include <bit>
#include <cmath>

#include "core/dispatch.h"
#include "core/element.h"
#include "sparse/indexer_args.h"
#include "sparse/lanes-inl.h"
#include "sparse/quantize_e4m3-inl.h"
#include "sparse/store_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x[i], x[i + half] = their sum, their difference, for halves 1, 2, 4 ...; then times cols^-1/2.
// The tree of sums is the same on every target, and so are the bits.
void Transform(float* x, int64_t cols) {
  const LaneF32 df;
  for (int64_t half = 1; half < cols; half *= 2) {
    for (int64_t i = 0; i < cols; i += 2 * half) {
      int64_t j = i;
      for (; j + kLanes <= i + half; j += kLanes) {
        const auto a = hn::LoadU(df, x + j);
        const auto b = hn::LoadU(df, x + j + half);
        hn::StoreU(hn::Add(a, b), df, x + j);
        hn::StoreU(hn::Sub(a, b), df, x + j + half);
      }
      for (; j < i + half; ++j) {
        const float a = x[j];
        const float b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
    }
  }
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(cols)));
  for (int64_t i = 0; i < cols; ++i) {
    x[i] *= scale;
  }
}

void HadamardRow(DType dtype, const uint8_t* from, uint8_t* to, int64_t cols, float* scratch) {
  HWY_DASSERT(std::has_single_bit(static_cast<uint64_t>(cols)));
  const auto element = static_cast<int64_t>(SizeOf(dtype));
  for (int64_t i = 0; i < cols; ++i) {
    scratch[i] = core::LoadElement(dtype, from + i * element);
  }
  Transform(scratch, cols);
  StoreRow(dtype, scratch, cols, to);
}

// |x| <= 6 as an e2m1 code, to the nearest, ties to the even code.
uint8_t E2M1Code(float x) {
  const float magnitude = std::min(std::fabs(x), 6.0f);
  const float code = magnitude < 2   ? std::nearbyint(2 * magnitude)
                     : magnitude < 4 ? std::nearbyint(magnitude) + 2
                                     : std::nearbyint(magnitude / 2) + 4;
  return static_cast<uint8_t>(static_cast<int>(code) | (std::signbit(x) ? 8 : 0));
}

// 32 elements as 16 bytes; returns their e8m0 scale.
uint8_t QuantizeMxFp4(const float* x, uint8_t* codes) {
  const float max = MaxMagnitude(x, 32);
  if (!(max <= hwy::HighestValue<float>())) {
    std::memset(codes, 0, 16);
    return 255;
  }
  const auto bits = std::bit_cast<uint32_t>(std::max(max, 1e-4f) / 6.0f);
  const uint32_t exponent = (bits + 0x7fffff) >> 23;  // up to a power of two
  const float inverse = std::bit_cast<float>((254 - exponent) << 23);
  for (int i = 0; i < 32; i += 2) {
    codes[i / 2] =
        static_cast<uint8_t>(E2M1Code(x[i] * inverse) | E2M1Code(x[i + 1] * inverse) << 4);
  }
  return static_cast<uint8_t>(exponent);
}

void WriteRow(const IndexRow& row) {
  HWY_DASSERT(row.dim % 16 == 0 && row.dim <= kMaxIndexDim);
  float x[kMaxIndexDim];
  RowToF32(row.from_dtype, row.from, row.dim, x);
  if (row.hadamard) {
    Transform(x, row.dim);
  }
  float scale = 1;
  if (row.mxfp4) {
    uint8_t scales[sizeof(scale)] = {};
    for (int i = 0; i < row.dim; i += 32) {
      scales[i / 32] = QuantizeMxFp4(x + i, row.to + i / 2);
    }
    std::memcpy(row.scale, scales, sizeof(scales));
    return;
  }
  if (row.to_dtype == DType::kI8) {
    int8_t codes[kMaxIndexDim];
    scale = QuantizeInt8(x, row.dim, codes);
    std::memcpy(row.to, codes, static_cast<size_t>(row.dim));
  } else if (row.to_dtype == DType::kE4M3) {
    scale = QuantizeE4M3(x, row.dim, row.power_of_two_scale, row.to);
  } else {
    StoreRow(row.to_dtype, x, row.dim, row.to);
    return;
  }
  std::memcpy(row.scale, &scale, sizeof(scale));
}

const IndexKeysKernels* IndexKeysKernelsForTarget() {
  static constexpr IndexKeysKernels kKernels = {WriteRow, HadamardRow};
  return &kKernels;
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sparse {
HWY_EXPORT(IndexKeysKernelsForTarget);

const IndexKeysKernels& GetIndexKeysKernels() {
  return *(*core::ForTarget(HWY_DISPATCH_TABLE(IndexKeysKernelsForTarget)))();
}

}  // namespace riffle::sparse
#endif  // HWY_ONCE
