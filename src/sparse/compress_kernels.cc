#include "sparse/compress_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/compress_kernels.cc"
#include <hwy/foreach_target.h>  // includes this file once per target
// clang-format off
#include <hwy/highway.h>
// clang-format on
#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "core/exp-inl.h"
#include "sparse/store_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::sparse::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using core::HWY_NAMESPACE::Exp2;

// f(kv, gate, bias) for kLanes channels of every token of an entry; bias is null or the row's.
template <class F>
HWY_INLINE void ForTokens(const CompressArgs& args, const CompressEntry& entry, int channel,
                          const F& f) {
  const auto element = [](const CompressInput& x) { return static_cast<int>(SizeOf(x.dtype)); };
  const int cols = args.dim * (args.overlap ? 2 : 1);
  const auto window = [&](int64_t token, int column) HWY_ATTR {
    for (int i = 0; i < args.ratio; ++i) {
      f(args.kv.data + (token + i) * args.kv.stride + column * element(args.kv),
        args.gates.data + (token + i) * args.gates.stride + column * element(args.gates),
        args.gate_bias == nullptr ? nullptr : args.gate_bias + int64_t{i} * cols + column);
    }
  };
  if (args.overlap && entry.number > 0) {
    window(entry.token - args.ratio, channel);
  }
  window(entry.token, channel + (args.overlap ? args.dim : 0));
}

HWY_INLINE VecF32 GateOf(const CompressArgs& args, const uint8_t* gate, const float* bias) {
  const auto x = LoadF32(args.gates.dtype, gate);
  return bias == nullptr ? x : hn::Add(x, hn::LoadU(LaneF32(), bias));
}

// Softmax pooling of kLanes channels.
HWY_INLINE VecF32 Pool(const CompressArgs& args, const CompressEntry& entry, int channel) {
  const LaneF32 df;
  const auto minus_inf = hn::Set(df, -std::numeric_limits<float>::infinity());
  auto max = minus_inf;
  ForTokens(args, entry, channel,
            [&](const uint8_t*, const uint8_t* gate, const float* bias)
                HWY_ATTR { max = hn::Max(max, GateOf(args, gate, bias)); });
  const auto shift = hn::IfThenZeroElse(hn::Eq(max, minus_inf), max);
  auto sum = hn::Zero(df);
  auto weight = hn::Zero(df);
  constexpr float kLog2E = 0x1.715476p+0f;
  ForTokens(args, entry, channel,
            [&](const uint8_t* kv, const uint8_t* gate, const float* bias) HWY_ATTR {
              const auto logit = hn::Sub(GateOf(args, gate, bias), shift);
              const auto p = Exp2(df, hn::Mul(logit, hn::Set(df, kLog2E)));
              weight = hn::Add(weight, p);
              // A token of weight 0 may hold anything, even NaN.
              const auto x =
                  hn::IfThenZeroElse(hn::Eq(p, hn::Zero(df)), LoadF32(args.kv.dtype, kv));
              sum = hn::MulAdd(p, x, sum);
            });
  return hn::Div(sum, weight);
}

void Normalize(const CompressArgs& args, float* x) {
  double squares = 0;
  for (int i = 0; i < args.dim; ++i) {
    squares += double{x[i]} * double{x[i]};
  }
  const auto factor = static_cast<float>(1 / std::sqrt(squares / args.dim + double{args.norm_eps}));
  for (int i = 0; i < args.dim; ++i) {
    x[i] *= factor;
    if (args.norm_weight != nullptr) {
      x[i] *= args.norm_weight[i];
    }
  }
}

void Rotate(const RopeTable& rope, int64_t position, float* x) {
  const float* cosines = rope.cos_sin + position * rope.row_stride;
  const float* sines = cosines + rope.dim / 2;
  for (int64_t i = 0; i < rope.dim / 2; ++i) {
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    x[2 * i] = a * cosines[i] - b * sines[i];
    x[2 * i + 1] = a * sines[i] + b * cosines[i];
  }
}

void Compress(const CompressArgs& args, const CompressEntry& entry, int64_t row) {
  HWY_DASSERT(args.dim % 16 == 0 && args.dim <= kMaxEntryDim);
  alignas(64) float x[kMaxEntryDim];
  for (int channel = 0; channel < args.dim; channel += kLanes) {
    hn::Store(Pool(args, entry, channel), LaneF32(), x + channel);
  }
  if (args.norm) {
    Normalize(args, x);
  }
  if (args.rope.cos_sin != nullptr) {
    Rotate(args.rope, entry.number * args.ratio, x + args.dim - args.rope.dim);
  }
  StoreRow(args.kv.dtype, x, args.dim, args.out + row * args.out_stride);
}

const CompressKernels* CompressKernelsForTarget() {
  static constexpr CompressKernels kKernels = {Compress};
  return &kKernels;
}

}  // namespace riffle::sparse::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace riffle::sparse {
HWY_EXPORT(CompressKernelsForTarget);

const CompressKernels& GetCompressKernels() {
  return *(*core::ForTarget(HWY_DISPATCH_TABLE(CompressKernelsForTarget)))();
}

}  // namespace riffle::sparse
#endif  // HWY_ONCE
